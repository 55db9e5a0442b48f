"""The line between the service and its PostgreSQL, which a test can cut."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy.engine import make_url


class Line:
    """Leads to a database; `url` is that of its near end."""

    def __init__(self, url: str) -> None:
        self._far = make_url(url)
        self._wires: set[asyncio.StreamWriter] = set()
        self._is_down = False
        self._marks: list[bytes] = []
        self.url = ""
        self.losses = 0
        """How often an answer was lost."""

    def cut(self) -> None:
        """End every connection, and each new one at once, until `mend`."""
        self._is_down = True
        for wire in list(self._wires):
            wire.transport.abort()

    def mend(self) -> None:
        self._is_down = False

    def lose_the_answer_to(self, *marks: bytes) -> None:
        """Cut the next connection that has sent these, one after the other.

        All that it sent has arrived and is done; of that nothing comes back.
        """
        self._marks = list(marks)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Line"]:
        tasks: set[asyncio.Task[None]] = set()

        async def accept(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            await self._lead(reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = self._far.set(port=port).render_as_string(hide_password=False)
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _lead(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._is_down:
            writer.transport.abort()
            return
        far, back = await asyncio.open_connection(self._far.host, self._far.port)
        self._wires |= {writer, back}
        marks = _Marks()
        try:
            await asyncio.gather(
                self._send(reader, back, marks), self._answer(far, writer, marks)
            )
        except ConnectionError:
            pass
        finally:
            for wire in (writer, back):
                wire.transport.abort()
                self._wires.discard(wire)

    async def _send(
        self, near: asyncio.StreamReader, back: asyncio.StreamWriter, marks: "_Marks"
    ) -> None:
        while data := await near.read(1_048_576):
            if self._marks and marks.has_seen(data, self._marks):
                self._marks = []
                marks.is_lost = True
            back.write(data)
            await back.drain()
        back.close()

    async def _answer(
        self, far: asyncio.StreamReader, writer: asyncio.StreamWriter, marks: "_Marks"
    ) -> None:
        while data := await far.read(1_048_576):
            if marks.is_lost:
                self.losses += 1
                raise ConnectionAbortedError
            writer.write(data)
            await writer.drain()
        writer.close()


class _Marks:
    """How far one connection has come."""

    def __init__(self) -> None:
        self._seen = 0
        self.is_lost = False

    def has_seen(self, data: bytes, marks: Sequence[bytes]) -> bool:
        while self._seen < len(marks) and marks[self._seen] in data:
            data = data.partition(marks[self._seen])[2]
            self._seen += 1
        return self._seen == len(marks)


@asynccontextmanager
async def line_to(url: str) -> AsyncIterator[Line]:
    """A line that is whole, for as long as the block lasts."""
    async with Line(url).open() as line:
        yield line
