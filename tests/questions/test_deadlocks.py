"""A batch that PostgreSQL ends as the victim of a deadlock is done again, whole."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.batching import Batcher
from core.db import Database
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings
from modules.questions.writing import NewQuestion, Outcome, Writing
from tests.conftest import Databases, connected


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[Database]:
    async with connected(await databases.migrated("postgresql")) as found:
        async with found.transaction() as session:
            people = "SELECT 'user' || n, 'user' || n FROM generate_series(1, 2) n"
            await session.execute(
                text(f"INSERT INTO users (username, username_key) {people}")
            )
        yield found


async def lock(session: AsyncSession, user_id: int) -> None:
    await session.execute(text(f"SELECT 1 FROM users WHERE id = {user_id} FOR UPDATE"))


async def until_somebody_waits(database: Database) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(60):
        while True:
            async with database.reading() as session:
                if await session.scalar(waiting):
                    return
            await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, {"per_minute": 100}], ids=["free", "limited"])
async def test_F15_questions_and_answers_of_a_batch_that_was_a_victim_are_stored(
    databases: Databases, database: Database, limits: dict[str, int]
) -> None:
    writing = Writing(database, QuestionSettings.model_validate(limits), 60)
    async with database.reading() as session:
        ids = list(await session.scalars(text("SELECT id FROM users ORDER BY id")))
    told = len(databases.postgres.log)

    new = [NewQuestion(user_id, "Why?", f"key-{user_id}") for user_id in ids]
    added = await _done_against_the_order(database, ids, writing.adding, new)
    outcomes = [
        Outcome(each.id, user_id, Status.ANSWERED, answer=f"Of {user_id}")
        for user_id, each in zip(ids, added, strict=True)
    ]
    settled = await _done_against_the_order(database, ids, writing.settling, outcomes)
    assert None not in settled

    assert databases.postgres.log[told:].count("deadlock detected") == 2
    async with database.reading() as session:
        answers = text("SELECT user_id, answer FROM questions ORDER BY id")
        stored = [tuple(row) for row in await session.execute(answers)]
    assert stored == [(user_id, f"Of {user_id}") for user_id in ids]
    await writing.drain()


async def _done_against_the_order(
    database: Database, ids: list[int], batcher: Batcher[Any, Any], keys: Sequence[Any]
) -> list[Any]:
    """What comes of a batch while somebody takes the locks the other way round."""
    first, second = ids
    async with database.transaction() as session:
        # Whoever looks first is the victim, and this one looks late.
        await session.execute(text("SET LOCAL deadlock_timeout = '30s'"))
        await lock(session, second)
        futures = [batcher.submit(key) for key in keys]
        await until_somebody_waits(database)
        await lock(session, first)
    return list(await asyncio.gather(*futures))
