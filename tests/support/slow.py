"""A PostgreSQL that is slow to store questions, until a test lets it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text

from core.db import Database

# What is inserted is not committed while somebody else holds this lock.
_SLOW = """
CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END $$
"""
_TRIGGER = (
    "CREATE OR REPLACE TRIGGER wait AFTER INSERT ON questions"
    " FOR EACH ROW EXECUTE FUNCTION wait()"
)


@asynccontextmanager
async def slow_inserts(database: Database) -> AsyncIterator[None]:
    """While the block lasts, questions are inserted and not committed."""
    async with database.transaction() as session:
        for statement in (_SLOW, _TRIGGER):
            await session.execute(text(statement))
    async with database.transaction() as session:
        await session.execute(text("SELECT pg_advisory_xact_lock(42)"))
        yield


async def waiting(database: Database, count: int) -> None:
    """Wait until so many statements wait for a lock."""
    found = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(60):
        while True:
            async with database.reading() as session:
                if await session.scalar(found) == count:
                    return
            await asyncio.sleep(0.01)
