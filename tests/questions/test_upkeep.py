"""What is done on the side: ends for the abandoned, room for the new."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text

from core.db import Database
from modules.questions import upkeep as upkeep_module
from modules.questions.settings import QuestionSettings
from modules.questions.upkeep import Upkeep
from tests.conftest import Databases, connected

DAY = 24 * 60 * 60
PATIENCE_SECONDS = 30


@pytest.fixture
async def migrated(databases: Databases, database_kind: str) -> AsyncIterator[Database]:
    async with connected(await databases.migrated(database_kind)) as found:
        yield found


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every test takes several of them."""
    monkeypatch.setattr(upkeep_module, "_AT_A_TIME", 4)


def ago(database: Database, seconds: float) -> str:
    """A moment by the database's own clock, in SQL."""
    if database.dialect == "sqlite":
        return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '{-seconds} seconds')"
    return f"statement_timestamp() - make_interval(secs => {seconds})"


async def someone(database: Database, name: str) -> int:
    async with database.transaction() as session:
        added = text(
            "INSERT INTO users (username, username_key)"
            f" VALUES ('{name}', '{name}') RETURNING id"
        )
        user_id: int = (await session.execute(added)).scalar_one()
        usage = (
            "INSERT INTO questions_usage VALUES"
            f" ({user_id}, '2026-01-01', 9, 9, {ago(database, 0)}, 9)"
        )
        await session.execute(text(usage))
    return user_id


async def ask(
    database: Database,
    user_id: int,
    *,
    seconds_ago: float,
    status: str = "answered",
    deadline_in: float | None = None,
    client_key: str | None = None,
) -> int:
    """Store a question; its id."""
    answer, at = ("NULL", "NULL")
    if status == "answered":
        answer, at = "'So.'", ago(database, seconds_ago)
    error = "'internal'" if status in ("failed", "interrupted") else "NULL"
    deadline = "NULL" if deadline_in is None else ago(database, -deadline_in)
    key = "NULL, NULL" if client_key is None else f"'{client_key}', 'of this'"
    unique = "hex(randomblob(8))"
    if database.dialect == "postgresql":
        unique = "gen_random_uuid()::text"
    asked = text(
        "INSERT INTO questions (user_id, content, status, answer, answered_at,"
        " error_code, idempotency_key, asked_at, deadline_at, client_key, fingerprint)"
        f" VALUES ({user_id}, 'secret?', '{status}', {answer}, {at}, {error},"
        f" {unique}, {ago(database, seconds_ago)}, {deadline}, {key}) RETURNING id"
    )
    async with database.transaction() as session:
        question_id: int = (await session.execute(asked)).scalar_one()
    return question_id


async def column(database: Database, sql: str) -> Sequence[Any]:
    async with database.reading() as session:
        return (await session.scalars(text(sql))).all()


async def left(database: Database) -> list[int]:
    return list(await column(database, "SELECT id FROM questions ORDER BY id"))


def keeping(database: Database, days: int, **more: Any) -> Upkeep:
    settings = QuestionSettings.model_validate({"keep_days": days, **more})
    return Upkeep(database, settings)


async def test_old_questions_are_removed_but_for_the_last_of_each(
    migrated: Database,
) -> None:
    ada, eve = [await someone(migrated, name) for name in ("ada1", "eve1")]
    old = [await ask(migrated, ada, seconds_ago=9 * DAY - n) for n in range(10)]
    mine = [await ask(migrated, eve, seconds_ago=9 * DAY) for _ in range(3)]
    await keeping(migrated, 8).remove_old()
    assert await left(migrated) == old[-3:] + mine
    young = [await ask(migrated, ada, seconds_ago=8 * DAY - 60) for _ in range(2)]
    await keeping(migrated, 8).remove_old()
    assert await left(migrated) == [old[-1], *mine, *young]
    usage = await column(migrated, "SELECT questions FROM questions_usage")
    assert usage == [9, 9]


async def test_the_last_ones_go_too_when_told_to(migrated: Database) -> None:
    ada = await someone(migrated, "ada2")
    for status in ("answered", "failed", "interrupted"):
        await ask(migrated, ada, seconds_ago=9 * DAY, status=status)
    pending = await ask(migrated, ada, seconds_ago=9 * DAY, status="pending")
    young = await ask(migrated, ada, seconds_ago=7 * DAY)
    await keeping(migrated, 8, keep_newest=False).remove_old()
    assert await left(migrated) == [pending, young]


async def test_nothing_is_removed_that_is_pending_or_without_an_age(
    migrated: Database,
) -> None:
    ada = await someone(migrated, "ada3")
    asked = [await ask(migrated, ada, seconds_ago=900 * DAY) for _ in range(5)]
    await keeping(migrated, 0, keep_newest=False).remove_old()
    assert await left(migrated) == asked
    for _ in range(5):
        asked.append(await ask(migrated, ada, seconds_ago=800 * DAY, status="pending"))
    # What is pending is shown too: it counts among the last ones.
    await keeping(migrated, 8, history_size=7).remove_old()
    assert await left(migrated) == asked[3:]


async def test_of_questions_of_one_moment_the_last_asked_are_kept(
    migrated: Database,
) -> None:
    ada = await someone(migrated, "ada4")
    await ask(migrated, ada, seconds_ago=9 * DAY)
    asked = [await ask(migrated, ada, seconds_ago=9 * DAY) for _ in range(12)]
    async with migrated.transaction() as session:
        one_moment = f"UPDATE questions SET asked_at = {ago(migrated, 9 * DAY)}"
        await session.execute(text(one_moment))
    await keeping(migrated, 8, history_size=2).remove_old()
    assert await left(migrated) == asked[-2:]


async def test_sweeps_at_once_leave_the_last_ones_and_let_others_write(
    migrated: Database,
) -> None:
    people = [await someone(migrated, f"many{n}") for n in range(5)]
    asked = {
        who: [await ask(migrated, who, seconds_ago=9 * DAY - n) for n in range(12)]
        for who in people
    }
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(keeping(migrated, 8).remove_old())
        new = tasks.create_task(ask(migrated, people[0], seconds_ago=0))
    # Somebody's oldest of the three went if the new one was there in time.
    await keeping(migrated, 8).remove_old()
    kept = [each for who in people for each in asked[who][-3:]]
    kept.remove(asked[people[0]][-3])
    assert await left(migrated) == [*kept, new.result()]


async def test_a_sweep_waits_for_nobody(databases: Databases) -> None:
    """What somebody else holds is left for the next time."""
    async with connected(await databases.migrated("postgresql")) as database:
        ada = await someone(database, "ada5")
        asked = [await ask(database, ada, seconds_ago=9 * DAY) for _ in range(9)]
        overdue = await ask(
            database, ada, seconds_ago=9 * DAY, status="pending", deadline_in=-1
        )
        sweeping = keeping(database, 8, keep_newest=False)
        async with database.transaction() as session:
            held = f"SELECT id FROM questions WHERE id IN ({asked[0]}, {overdue})"
            await session.execute(text(f"{held} FOR UPDATE"))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await sweeping.remove_old()
                await sweeping.interrupt_overdue()
                await sweeping.forget_keys()
            assert await left(database) == [asked[0], overdue]
        await sweeping.interrupt_overdue()
        await sweeping.remove_old()
        assert await left(database) == []


async def test_A20_a_key_is_free_after_a_day_and_not_before(
    migrated: Database,
) -> None:
    ada = await someone(migrated, "ada6")
    for n in range(9):
        await ask(migrated, ada, seconds_ago=DAY + 1, client_key=f"old{n}")
    await ask(migrated, ada, seconds_ago=DAY - 60, client_key="young")
    await keeping(migrated, 0).forget_keys()
    keys = "SELECT client_key FROM questions WHERE client_key IS NOT NULL"
    assert await column(migrated, keys) == ["young"]
    told = "SELECT fingerprint FROM questions WHERE fingerprint IS NOT NULL"
    assert len(await column(migrated, told)) == 1
    await ask(migrated, ada, seconds_ago=0, client_key="old0")
    with pytest.raises(Exception, match=r"(?i)unique"):
        await ask(migrated, ada, seconds_ago=0, client_key="young")


async def test_A02_what_is_overdue_ends_and_nothing_else(
    migrated: Database, caplog: pytest.LogCaptureFixture
) -> None:
    ada = await someone(migrated, "ada7")
    hours = 60 * 60
    over = [
        await ask(migrated, ada, seconds_ago=60, status="pending", deadline_in=-1 - n)
        for n in range(6)
    ]
    # Of an older release, which sets no deadline.
    over.append(await ask(migrated, ada, seconds_ago=2 * hours + 1, status="pending"))
    alive = [
        await ask(
            migrated, ada, seconds_ago=3 * hours, status="pending", deadline_in=9
        ),
        await ask(migrated, ada, seconds_ago=2 * hours - 60, status="pending"),
    ]
    done = await ask(migrated, ada, seconds_ago=60, deadline_in=-1)
    with caplog.at_level(logging.INFO):
        await keeping(migrated, 0).interrupt_overdue()
    ended = "SELECT id FROM questions WHERE status = 'interrupted' ORDER BY id"
    assert await column(migrated, ended) == over
    pending = "SELECT id FROM questions WHERE status = 'pending' ORDER BY id"
    assert await column(migrated, pending) == alive
    answered = "SELECT id FROM questions WHERE status = 'answered'"
    assert await column(migrated, answered) == [done]
    codes = "SELECT DISTINCT error_code FROM questions WHERE status = 'interrupted'"
    assert await column(migrated, codes) == ["owner_lost"]
    told = [
        record for record in caplog.records if record.msg == "questions.interrupted"
    ]
    batches = [record.__dict__["question_ids"] for record in told]
    assert sorted(each for batch in batches for each in batch) == over
    assert max(map(len, batches)) <= 4
    assert "secret?" not in caplog.text
    await keeping(migrated, 0).interrupt_all()
    assert await column(migrated, pending) == []
