"""Connections to a database that die while they write: before it is done, or after."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import event
from sqlalchemy.engine import make_url

from core.db import Database

MARK = "mark-"
Moment = Literal["before", "during", "after"]
# The server is ready for a query, and in no transaction.
_IDLE = b"Z\x00\x00\x00\x05I"


@dataclass
class Death:
    """Comes to so many connections, one by one, that are told something with a MARK."""

    moment: Moment = "before"
    times: int = 0

    def comes(self, moment: Moment) -> bool:
        """Whether it comes now."""
        if not self.times or self.moment != moment:
            return False
        self.times -= 1
        return True


@asynccontextmanager
async def mortal(url: str) -> AsyncIterator[tuple[str, Death]]:
    """A URL that leads to a PostgreSQL through wires which can be cut."""
    death, there = Death(), make_url(url)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        answers, asks = await asyncio.open_connection(there.host, there.port)
        wire = _Wire(death)
        pumps = {
            asyncio.create_task(_pump(reader, asks, wire.may_ask, wire.may_go_on)),
            asyncio.create_task(_pump(answers, writer, wire.may_answer)),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass
        finally:
            # Both ends at once, whatever is still on its way.
            asks.transport.abort()
            writer.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield there.set(port=port).render_as_string(hide_password=False), death
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A turn of the loop for what was aborted.
        await asyncio.sleep(0)


class _Wire:
    """What one connection may still say."""

    def __init__(self, death: Death) -> None:
        self._death = death
        self._is_marked = False

    def may_ask(self, data: bytes) -> bool:
        self._is_marked = self._is_marked or MARK.encode() in data
        return not (MARK.encode() in data and self._death.comes("before"))

    def may_go_on(self, data: bytes) -> bool:
        return not (MARK.encode() in data and self._death.comes("during"))

    def may_answer(self, data: bytes) -> bool:
        is_over = self._is_marked and data.endswith(_IDLE)
        return not (is_over and self._death.comes("after"))


async def _pump(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter,
    may_pass: Callable[[bytes], bool],
    may_go_on: Callable[[bytes], bool] = bool,
) -> None:
    while (data := await source.read(65536)) and may_pass(data):
        target.write(data)
        if not may_go_on(data):
            return


@contextmanager
def mortal_writer(database: Database) -> Iterator[Death]:
    """The same for a SQLite database: its writer fails as a broken file does."""
    death, engine = Death(), database._writer.sync_engine
    marked: set[int] = set()

    def execute(
        connection: Any, cursor: Any, statement: str, given: Any, *_: Any
    ) -> None:
        if MARK in repr(given):
            marked.add(id(connection))
            if death.comes("before"):
                raise OSError

    def commit(connection: Any) -> None:
        if id(connection) in marked and death.comes("after"):
            connection.exec_driver_sql("COMMIT")
            raise OSError
        marked.discard(id(connection))

    def roll_back(connection: Any) -> None:
        marked.discard(id(connection))

    listeners = (
        ("before_cursor_execute", execute),
        ("commit", commit),
        ("rollback", roll_back),
    )
    for name, listener in listeners:
        event.listen(engine, name, listener)
    yield death
    for name, listener in listeners:
        event.remove(engine, name, listener)
