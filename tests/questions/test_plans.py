"""How questions are found among many: from an index, a page's worth at a time."""

import itertools
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.db import Database
from modules.questions import repository
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings
from modules.questions.sql import statements
from modules.questions.writing import NewQuestion, Outcome, Writing
from tests.conftest import Databases, connected
from tests.support.plans import Act, Plan, explained, first_sent, steps

COUNT, PEOPLE = 50_000, 2_000
MOST, MANY, FEW, NONE = 1, 2, 1_000, 4
"""Two people have most of the questions; one has none at all."""
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
LIMIT, SIZE = 10, 3
# Those of a page, and what may be passed over between them.
ROWS = 3 * LIMIT
# So many of the table and of `users`, and the way down each index.
PAGES = 8 * LIMIT
FILL = """
INSERT INTO questions (user_id, content, status, answer, answered_at, error_code,
    idempotency_key, client_key, fingerprint, asked_at, deadline_at)
SELECT
    CASE WHEN n % 2 = 0 THEN 1 WHEN n % 5 = 0 THEN 2 ELSE 5 + n % {others} END,
    'Why is that so, and not in another way, number ' || n || '?', status,
    CASE WHEN status = 'answered' THEN 'Because it is so, and nobody knows why.' END,
    CASE WHEN status = 'answered' THEN {at} END,
    CASE WHEN status IN ('failed', 'interrupted') THEN 'internal' END,
    n, CASE WHEN n > {count} * 9 / 10 THEN n END,
    CASE WHEN n > {count} * 9 / 10 THEN 'of this' END, {at}, {at}
FROM (SELECT n, CASE
    WHEN n > {count} * 9 / 10 THEN 'pending'
    WHEN n > {count} * 3 / 10 OR n % 3 = 0 THEN 'answered'
    WHEN n % 3 = 1 THEN 'failed' ELSE 'interrupted' END AS status
    FROM {numbers}) AS numbered
"""
# All but a few of those that are pending are over, and their keys are forgotten.
SETTLE = """
UPDATE questions SET status = 'answered', answer = 'So.', answered_at = asked_at,
    client_key = NULL, fingerprint = NULL
WHERE status = 'pending' AND id % 500 <> 0
"""


# A tenth of them, somebody else's, are pending and have keys.
GROWN = f"""
INSERT INTO questions (user_id, content, status, answer, answered_at,
    idempotency_key, client_key, fingerprint, deadline_at)
SELECT 1 + p, 'Why?', CASE p WHEN 1 THEN 'pending' ELSE 'answered' END,
    CASE p WHEN 0 THEN 'So.' END, CASE p WHEN 0 THEN statement_timestamp() END,
    n, CASE p WHEN 1 THEN n END, CASE p WHEN 1 THEN 'of this' END,
    statement_timestamp()
FROM (SELECT n, CASE WHEN n % 10 = 0 THEN 1 ELSE 0 END AS p
    FROM generate_series(1, {COUNT}) AS n) AS numbered
"""


def asked(n: int) -> datetime:
    """When the question of that number was asked."""
    return BEGIN + timedelta(minutes=n)


async def fill(session: AsyncSession, **words: Any) -> None:
    names = text(
        "INSERT INTO users (username, username_key)"
        f" SELECT 'user' || n, 'user' || n FROM {words['people']}"
    )
    await session.execute(names)
    others = PEOPLE - 5
    await session.execute(text(FILL.format(count=COUNT, others=others, **words)))


@pytest.fixture(scope="module", params=["true", "outdated"])
async def postgresql(
    databases: Databases, request: pytest.FixtureRequest
) -> AsyncIterator[Database]:
    """Statistics are true, or of a time when a tenth were pending and had keys."""
    url = await databases.migrated("postgresql")
    async with connected(url) as found:
        async with found.transaction() as session:
            for table in ("questions", "users"):
                off = f"ALTER TABLE {table} SET (autovacuum_enabled = off)"
                await session.execute(text(off))
            await fill(
                session,
                people=f"generate_series(1, {PEOPLE}) AS n",
                numbers=f"generate_series(1, {COUNT}) AS n",
                at=f"timestamptz '{BEGIN.isoformat()}' + n * interval '1 minute'",
            )
            await session.execute(text("ANALYZE"))
            await session.execute(text(SETTLE))
        async with found.reading() as session:
            analyze = "ANALYZE" if request.param == "true" else ""
            await session.execute(text(f"VACUUM {analyze}"))
        yield found


@pytest.fixture(scope="module")
async def sqlite(databases: Databases) -> AsyncIterator[Database]:
    series = "(WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s"
    async with connected(await databases.migrated("sqlite")) as found:
        async with found.transaction() as session:
            await fill(
                session,
                people=f"{series} WHERE n < {PEOPLE}) SELECT n FROM s)",
                numbers=f"{series} WHERE n < {COUNT}) SELECT n FROM s)",
                at=(
                    f"strftime('%Y-%m-%d %H:%M:%f000', '{BEGIN:%Y-%m-%d %H:%M}',"
                    " n || ' minutes')"
                ),
            )
            await session.execute(text(SETTLE))
        yield found


def pages() -> list[dict[str, Any]]:
    """Every combination of filters, the first page and deep ones."""
    old = COUNT // 5
    froms = (None, asked(old // 2))
    befores = (None, asked(COUNT // 2), asked(old))
    places = (None, (asked(COUNT // 2 - 7), COUNT), (asked(old), old))
    combined = itertools.product(
        (None, MOST, MANY, FEW, NONE), (None, *Status), froms, befores, places
    )
    names = ("user_id", "status", "asked_from", "asked_before", "after")
    return [dict(zip(names, each, strict=True)) for each in combined]


def other_work() -> dict[str, tuple[Act, str]]:
    """What else looks for questions, and the index that leads it there."""
    place = (asked(COUNT // 2), COUNT // 2)
    day, ids = 24 * 60 * 60, list(range(COUNT // 2, COUNT // 2 + LIMIT))
    mine, lists = "ix_questions_user_id_asked_at", "ix_questions_asked_at"
    unanswered = "ix_questions_unanswered_user_id"
    most: dict[str, Any] = {"user_id": MOST, "limit": LIMIT}
    reaped = partial(repository.interrupt_overdue, code="owner_lost", limit=LIMIT)
    old: dict[str, Any] = {"seconds_ago": day, "limit": LIMIT}
    removed = partial(repository.remove_old, ids=ids)
    return {
        "the last three": (partial(repository.newest, user_id=MOST, size=SIZE), mine),
        "an export": (partial(repository.older, before=None, **most), mine),
        "a deep export": (partial(repository.older, before=place, **most), mine),
        "in flight": (partial(repository.used, user_id=MOST), unanswered),
        "overdue": (partial(reaped, is_sole=False), "ix_questions_unanswered_user_id"),
        "all pending": (
            partial(reaped, is_sole=True),
            "ix_questions_unanswered_user_id",
        ),
        "old keys": (
            partial(repository.forget_client_keys, **old),
            "ix_questions_client_key_asked_at",
        ),
        "the oldest": (partial(repository.oldest, after=None, **old), lists),
        "old ones": (partial(repository.oldest, after=place, **old), lists),
        "removed but the newest": (partial(removed, but_newest=SIZE), mine),
        "removed": (partial(removed, but_newest=0), "pk_questions"),
        "a client's key": (
            partial(repository.find_by_client_key, user_id=MOST, client_key="1"),
            "uq_questions_user_id_client_key",
        ),
    }


def assert_few(plan: Plan, told: object) -> None:
    """It reads a page's worth of rows, so it sorts no more; they come from indexes."""
    # What was found is fetched once more to be locked, and to be written.
    times = 3 if plan.root["Node Type"] == "ModifyTable" else 1
    assert plan.read("questions") <= times * ROWS, (told, plan.root)
    assert plan.pages <= times * PAGES, (told, plan.root)
    assert plan.nodes_of("questions"), plan.root
    kinds = {node["Node Type"] for node in plan.nodes_of("questions")}
    assert "Seq Scan" not in kinds, (told, plan.root)


@pytest.mark.slow
@pytest.mark.parametrize("is_generic", [False, True])
async def test_every_page_of_an_administrators_list_reads_a_pages_worth(
    postgresql: Database, is_generic: bool
) -> None:
    async with postgresql.transaction() as session:
        for filters in pages():
            act = partial(repository.page, limit=LIMIT, **filters)
            sent = await first_sent(session, act)
            plan = await explained(session, sent, is_generic=is_generic)
            assert_few(plan, filters)


@pytest.mark.parametrize("is_generic", [False, True])
@pytest.mark.parametrize("name", other_work())
async def test_whatever_else_looks_for_questions_reads_a_few(
    postgresql: Database, name: str, is_generic: bool
) -> None:
    act, index = other_work()[name]
    async with postgresql.transaction() as session:
        sent = await first_sent(session, act)
        plan = await explained(session, sent, is_generic=is_generic)
    assert_few(plan, name)
    found = plan.indexes
    # Two of them lead to all that is pending: either is as good.
    assert index in found or "ix_questions_unanswered" in found, plan.root


LIMITS = QuestionSettings.model_validate(
    {"per_minute": 99, "in_flight": 99, "per_day": 99, "tokens_per_day": 99}
    | {"service_per_day": 99, "service_tokens_per_day": 99}
)


async def write_plan(session: AsyncSession, write: str, *, is_generic: bool) -> Plan:
    """Of one of both writes, with every limit set."""
    sql = statements("postgresql", LIMITS, deadline_seconds=90)
    new = [MOST, "Why?", "new", "key", "of this"]
    outcome = [COUNT, MOST, "answered", [], "So.", "main", "fake", 1, 1, "stop", None]
    statement, row = (sql.add, new) if write == "add" else (sql.settle, outcome)
    rows = {"rows": json.dumps([row])}
    sent = await first_sent(session, lambda s: s.execute(statement.element, rows))
    return await explained(session, sent, is_generic=is_generic)


def assert_settled_by_id(plan: Plan) -> None:
    """Not found among all that are pending, which may be thousands."""
    found_by = {node.get("Index Name") for node in plan.nodes_of("questions")}
    assert found_by == {"pk_questions"}


@pytest.mark.parametrize("is_generic", [False, True])
@pytest.mark.parametrize("write", ["add", "settle"])
async def test_writing_questions_reads_a_few(
    postgresql: Database, write: str, is_generic: bool
) -> None:
    async with postgresql.transaction() as session:
        plan = await write_plan(session, write, is_generic=is_generic)
    assert_few(plan, write)
    if write == "settle":
        assert_settled_by_id(plan)


async def test_plans_made_for_empty_tables_do_for_full_ones(
    databases: Databases,
) -> None:
    """A server that has just been installed must not slow down until it is analyzed."""
    url = await databases.migrated("postgresql")
    async with connected(url, pool_size=1) as database:
        writing = Writing(database, LIMITS, 90)
        off = "ALTER TABLE questions SET (autovacuum_enabled = off)"
        async with database.transaction() as session:
            await session.execute(text(off))
            for name in ("ada", "eve"):
                add = "INSERT INTO users (username, username_key) VALUES (:name, :name)"
                await session.execute(text(add), {"name": name})
        # After the fifth time a plan is kept that knows none of the values.
        for _ in range(10):
            await _ask_once(writing)
        async with database.transaction() as session:
            plan = await write_plan(session, "settle", is_generic=True)
        assert_settled_by_id(plan)
        before = await _rows_read(database)
        async with database.transaction() as session:
            await session.execute(text(GROWN))
        for _ in range(3):
            await _ask_once(writing)
        read = await _rows_read(database) - before
        assert read < 100


async def _ask_once(writing: Writing) -> None:
    key = uuid.uuid4().hex
    new = NewQuestion(1, "Why?", key, key, "of this")
    added = await writing.adding.submit(new)
    assert added is not None
    outcome = Outcome(added.id, 1, Status.ANSWERED, answer="So.", completion_tokens=1)
    assert await writing.settling.submit(outcome) is not None


async def _rows_read(database: Database) -> int:
    """How many rows of questions were looked at, in the table or in an index."""
    async with database.reading() as session:
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    async with database.reading() as session:
        found = await session.scalar(
            text(
                "SELECT seq_tup_read + (SELECT sum(idx_tup_read)"
                " FROM pg_stat_user_indexes WHERE relname = 'questions')"
                " FROM pg_stat_user_tables WHERE relname = 'questions'"
            )
        )
    return int(found or 0)


async def test_sqlite_finds_every_page_in_the_order_of_an_index(
    sqlite: Database,
) -> None:
    async with sqlite.reading() as session:
        for filters in pages():
            act = partial(repository.page, limit=LIMIT, **filters)
            sent = await first_sent(session, act)
            found = "; ".join(await steps(session, sent))
            told = (filters, found)
            is_rare = filters["status"] not in (None, Status.ANSWERED)
            index = "user_id_asked_at" if filters["user_id"] else "asked_at"
            if is_rare:
                index = "unanswered_user_id" if filters["user_id"] else "unanswered"
            assert f"questions USING INDEX ix_questions_{index}" in found, told
            assert "TEMP B-TREE" not in found, told
            # Without any filter at all it begins at the end of the index.
            is_narrowed = is_rare or any(
                filters[name] for name in filters if name != "status"
            )
            assert ("SEARCH questions" in found) == is_narrowed, told


@pytest.mark.parametrize("name", other_work())
async def test_sqlite_finds_whatever_else_it_looks_for_by_an_index(
    sqlite: Database, name: str
) -> None:
    act, index = other_work()[name]
    # The table itself is the index of its ids.
    index = {"pk_questions": "INTEGER PRIMARY KEY"}.get(index, index)
    async with sqlite.transaction() as session:
        found = "; ".join(await steps(session, await first_sent(session, act)))
    assert index in found
    assert "SCAN questions" not in found
    assert "TEMP B-TREE" not in found
