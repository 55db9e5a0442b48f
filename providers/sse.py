"""Server-sent events, read as they arrive.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from typing import NamedTuple

from providers.public import ProviderBadResponse

LONGEST_LINE = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its type, empty when it names none, and its data."""

    name: str
    data: str


class EventReader:
    """Turns bytes into events, however they were cut on their way."""

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of a line whose end has not come
        self._is_first = True
        self._ended_by_cr = False
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, part: bytes) -> Iterator[Event]:
        """Yield the events that `part` completes.

        Raises ProviderBadResponse for a line or an event of more than 64 KiB.
        """
        for line in self._lines(part):
            if not line:
                if (event := self._dispatch()) is not None:
                    yield event
                continue
            field, _, value = line.partition(b":")
            if field == b"data":
                self._append(value.removeprefix(b" "))
            elif field == b"event":
                self._name = value.removeprefix(b" ").decode("utf-8", "replace")

    def _lines(self, part: bytes) -> Iterator[bytes]:
        if not part:
            return
        if self._ended_by_cr:
            # It may be the second half of a CR LF that was cut in two.
            part = part.removeprefix(b"\n")
        self._ended_by_cr = part.endswith(b"\r")
        lines = part.splitlines()
        cut = b"" if part.endswith((b"\r", b"\n")) or not lines else lines.pop()
        for line in lines:
            yield self._whole(line)
        self._rest += cut
        _check_size(len(self._rest))

    def _whole(self, line: bytes) -> bytes:
        """The line, with the beginning that came earlier."""
        if self._rest:
            self._rest += line
            line = bytes(self._rest)
            self._rest.clear()
        _check_size(len(line))
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        return line

    def _append(self, value: bytes) -> None:
        self._size += len(value) + 1
        _check_size(self._size)
        self._data.append(value.decode("utf-8", "replace"))

    def _dispatch(self) -> Event | None:
        event = Event(self._name, "\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event


def _check_size(size: int) -> None:
    if size > LONGEST_LINE:
        raise ProviderBadResponse


async def events_of(parts: AsyncIterable[bytes]) -> AsyncGenerator[Event, None]:
    """The events of a body. What comes after the last blank line is no event."""
    reader = EventReader()
    async for part in parts:
        for event in reader.feed(part):
            yield event
