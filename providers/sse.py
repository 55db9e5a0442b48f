"""Server-sent events, read as they arrive.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from typing import NamedTuple, Protocol

import aiohttp

from providers.public import (
    Delta,
    Finish,
    ProviderBadResponse,
    ProviderError,
    ProviderStreamBroken,
)

LONGEST_LINE = 64 * 1024
# How long the usage and the end of the body may come after the end of the answer.
_TAIL_SECONDS = 1.0
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
            _check_size(len(line))
            if not line:
                if self._data:
                    yield Event(self._name, "\n".join(self._data))
                self._name, self._data, self._size = "", [], 0
                continue
            field, _, value = line.partition(b":")
            if field == b"data":
                self._append(value.removeprefix(b" "))
            elif field == b"event":
                self._name = value.removeprefix(b" ").decode("utf-8", "replace")
        _check_size(len(self._rest))

    def _lines(self, part: bytes) -> list[bytes]:
        """The lines that `part` completes; the first may have begun before."""
        if not part:
            return []
        if self._ended_by_cr:
            # It may be the second half of a CR LF that was cut in two.
            part = part.removeprefix(b"\n")
        self._ended_by_cr = part.endswith(b"\r")
        lines = part.splitlines()
        cut = b"" if part.endswith((b"\r", b"\n")) or not lines else lines.pop()
        if lines and self._rest:
            self._rest += lines[0]
            lines[0] = bytes(self._rest)
            self._rest.clear()
        if lines and self._is_first:
            self._is_first = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        self._rest += cut
        return lines

    def _append(self, value: bytes) -> None:
        self._size += len(value) + 1
        _check_size(self._size)
        self._data.append(value.decode("utf-8", "replace"))


def _check_size(size: int) -> None:
    if size > LONGEST_LINE:
        raise ProviderBadResponse


class Ending(Protocol):
    """What a stream has said of its answer's end so far, in one wire format."""

    @property
    def is_reached(self) -> bool:
        """Whether the answer is complete."""

    @property
    def finish(self) -> Finish:
        """The end, once it is reached."""

    def read(self, event: Event) -> Delta | None:
        """Take one event in; the delta in it, if there is one."""


async def read_stream(
    parts: AsyncIterable[bytes], ending: Ending
) -> AsyncGenerator[Delta | Finish, None]:
    """The deltas of a body, then the Finish that `ending` makes of it.

    Raises ProviderStreamBroken when the body ends before the answer does.
    """
    reader = EventReader()
    async for part in parts:
        events = reader.feed(part)
        for event in events:
            if (delta := ending.read(event)) is not None:
                yield delta
            if ending.is_reached:
                break
        if ending.is_reached:
            break
    else:
        # A clean end of the body is no end of the answer.
        raise ProviderStreamBroken
    async with aclosing(_rest(events, reader, parts)) as rest:
        # Some backends name a reason in every chunk: then it was not the end after all.
        while (delta := await _read_tail(rest, ending)) is not None:
            yield delta
    yield ending.finish


async def _rest(
    events: Iterator[Event], reader: EventReader, parts: AsyncIterable[bytes]
) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event
    async for part in parts:
        for event in reader.feed(part):
            yield event


async def _read_tail(events: AsyncIterator[Event], ending: Ending) -> Delta | None:
    """Read on for the usage, and to the end of the body, or it cannot be kept open.

    The answer is complete: nothing that goes wrong here can spoil it. Returns what
    there is of it nevertheless.
    """
    with suppress(TimeoutError, aiohttp.ClientError, ProviderError):
        async with asyncio.timeout(_TAIL_SECONDS):
            async for event in events:
                delta = ending.read(event)
                if delta is not None and delta.text:
                    return delta
    return None
