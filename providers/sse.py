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
            if not line:
                if (event := self._dispatch()) is not None:
                    yield event
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                self._append(value)
            elif field == b"event":
                self._name = value.decode("utf-8", "replace")

    def _lines(self, part: bytes) -> Iterator[bytes]:
        if self._ended_by_cr and part:
            # The second half of a CR LF that was cut in two.
            part = part.removeprefix(b"\n")
            self._ended_by_cr = False
        for line in part.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            self._rest += text
            if len(self._rest) > LONGEST_LINE:
                raise ProviderBadResponse
            if len(text) == len(line):
                break
            self._ended_by_cr = line.endswith(b"\r")
            whole = bytes(self._rest)
            self._rest.clear()
            if self._is_first:
                whole = whole.removeprefix(_BYTE_ORDER_MARK)
                self._is_first = False
            yield whole

    def _append(self, value: bytes) -> None:
        self._size += len(value) + 1
        if self._size > LONGEST_LINE:
            raise ProviderBadResponse
        self._data.append(value.decode("utf-8", "replace"))

    def _dispatch(self) -> Event | None:
        event = Event(self._name, "\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event


async def events_of(parts: AsyncIterable[bytes]) -> AsyncGenerator[Event, None]:
    """The events of a body. What comes after the last blank line is no event."""
    reader = EventReader()
    async for part in parts:
        for event in reader.feed(part):
            yield event


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
    async with aclosing(events_of(parts)) as events:
        async for event in events:
            if (delta := ending.read(event)) is not None:
                yield delta
            if ending.is_reached:
                break
        if not ending.is_reached:
            # A clean end of the body is no end of the answer.
            raise ProviderStreamBroken
        await _read_tail(events, ending)
    yield ending.finish


async def _read_tail(events: AsyncIterator[Event], ending: Ending) -> None:
    """Read on for the usage, and to the end of the body, or it cannot be kept open.

    The answer is complete: nothing that goes wrong here can spoil it.
    """
    with suppress(TimeoutError, aiohttp.ClientError, ProviderError):
        async with asyncio.timeout(_TAIL_SECONDS):
            async for event in events:
                ending.read(event)
