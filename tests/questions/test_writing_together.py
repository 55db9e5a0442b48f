"""Both writes of two replicas at once, and of whoever deletes accounts meanwhile."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from core.db import Database
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings
from modules.questions.writing import Added, NewQuestion, Outcome, Settled, Writing
from tests.conftest import Databases, connected
from tests.questions.test_writing import make_people
from tests.support.dying import MARK, mortal
from tests.support.slow import slow_inserts, waiting

ROUNDS = 150
GENEROUS = {"per_minute": 1_000_000, "service_per_day": 1_000_000}


@pytest.fixture(scope="module")
async def url(databases: Databases) -> str:
    return await databases.migrated("postgresql")


@pytest.fixture
async def replicas(
    databases: Databases, url: str
) -> AsyncIterator[tuple[Database, Database]]:
    """Two of one database, in which nobody may have waited in a circle."""
    told = len(databases.postgres.log)
    async with connected(url) as one, connected(url) as other:
        yield one, other
    assert "deadlock detected" not in databases.postgres.log[told:]


def writing(database: Database, **limits: int) -> Writing:
    return Writing(database, QuestionSettings.model_validate(limits), 60)


def question(user_id: int, client_key: str | None = None) -> NewQuestion:
    fingerprint = None if client_key is None else "f"
    return NewQuestion(user_id, "Why?", uuid.uuid4().hex, client_key, fingerprint)


def answer(question_id: int, user_id: int) -> Outcome:
    return Outcome(
        question_id,
        user_id,
        Status.ANSWERED,
        answer="So.",
        prompt_tokens=1,
        completion_tokens=2,
    )


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for one in work:
            tasks.create_task(one)


async def added(
    writing: Writing, questions: Sequence[NewQuestion]
) -> list[Added | None]:
    waiting = [writing.adding.submit(question) for question in questions]
    return await asyncio.gather(*waiting)


async def count(database: Database, statement: str) -> int:
    async with database.reading() as session:
        return int(await session.scalar(text(statement)) or 0)


@pytest.mark.parametrize(
    "limit", ["per_minute", "in_flight", "per_day", "service_per_day"]
)
async def test_A19_a_limit_holds_for_all_replicas_to_the_last_question(
    replicas: tuple[Database, Database], limit: str
) -> None:
    most = 7
    for _ in range(10):
        async with replicas[0].transaction() as session:
            await session.execute(text("DELETE FROM questions_budget"))
        (ada,) = await make_people(replicas[0], 1)
        writings = [writing(database, **{limit: most}) for database in replicas]
        told = await asyncio.gather(
            *(added(one, [question(ada) for _ in range(5)]) for one in writings * 2)
        )
        stored = [each for batch in told for each in batch if each is not None]
        assert len(stored) == most
        mine = f"SELECT count(*) FROM questions WHERE user_id = {ada}"
        assert await count(replicas[0], mine) == most


@pytest.mark.parametrize(
    "limit", ["per_minute", "in_flight", "per_day", "service_per_day"]
)
async def test_A19_what_one_replica_is_about_to_store_another_counts(
    databases: Databases, limit: str
) -> None:
    """The second statement begins while the first is not committed yet."""
    url = await databases.migrated("postgresql")
    async with connected(url) as one, connected(url) as other:
        (ada,) = await make_people(one, 1)
        async with slow_inserts(one):
            first = asyncio.create_task(
                added(writing(one, **{limit: 1}), [question(ada)])
            )
            await waiting(one, 1)
            second = asyncio.create_task(
                added(writing(other, **{limit: 1}), [question(ada)])
            )
            await waiting(one, 2)
        assert [[bool(told) for told in await task] for task in (first, second)] == [
            [True],
            [False],
        ]


async def test_A20_replicas_store_a_key_once_in_whatever_order_they_get_them(
    replicas: tuple[Database, Database],
) -> None:
    for _ in range(30):
        people = await make_people(replicas[0], 20)
        keys = [(person, f"k{n}") for person in people for n in range(5)]

        async def ask(
            database: Database, told: Counter[tuple[int, str]], keys: Any = keys
        ) -> None:
            mine = random.sample(keys, len(keys))
            found = await added(writing(database), [question(*key) for key in mine])
            told.update(key for key, one in zip(mine, found, strict=True) if one)

        told: Counter[tuple[int, str]] = Counter()
        await together(*(ask(database, told) for database in replicas))
        assert told == Counter(keys)


@pytest.mark.parametrize("limits", [{}, GENEROUS], ids=["no limits", "limits"])
async def test_F35_asking_races_the_deletion_of_accounts(
    replicas: tuple[Database, Database], limits: dict[str, int]
) -> None:
    """Each is stored, or the account is gone: no error, and nobody else's question."""
    writings = [writing(database, **limits) for database in replicas]
    for _ in range(30):
        people = await make_people(replicas[0], 8)
        leaving = people[::2]

        async def ask(
            one: Writing, people: list[int] = people, leaving: list[int] = leaving
        ) -> None:
            mine = [person for person in people for _ in range(3)]
            random.shuffle(mine)
            found = await added(one, [question(person) for person in mine])
            for person, stored in zip(mine, found, strict=True):
                assert stored is not None or person in leaving

        deletions = (delete(replicas[n % 2], id) for n, id in enumerate(leaving))
        await together(*map(ask, writings), *deletions)
        gone = ", ".join(map(str, leaving))
        for table in ("questions", "questions_usage"):
            left = f"SELECT count(*) FROM {table} WHERE user_id IN ({gone})"
            assert await count(replicas[0], left) == 0


async def delete(database: Database, user_id: int) -> None:
    await asyncio.sleep(random.uniform(0, 0.004))
    async with database.transaction() as session:
        await session.execute(text(f"DELETE FROM users WHERE id = {user_id}"))


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, GENEROUS], ids=["no limits", "limits"])
async def test_F34_settling_races_the_deletion_of_accounts(
    replicas: tuple[Database, Database], limits: dict[str, int]
) -> None:
    """Two replicas settle in any order, while every other asker leaves.

    Nobody waits in a circle (see `replicas`), and each outcome is stored once or its
    question is gone.
    """
    writings = [writing(database, **limits) for database in replicas]
    for _ in range(ROUNDS // 2):
        people = await make_people(replicas[0], 6)
        leaving = people[::2]
        asking = [question(person) for person in people for _ in range(6)]
        random.shuffle(asking)
        stored = [
            (one.id, new.user_id)
            for new, one in zip(asking, await added(writings[0], asking), strict=True)
            if one is not None
        ]
        assert len(stored) == len(asking)
        told: Counter[int] = Counter()

        async def settle(
            one: Writing, told: Counter[int] = told, stored: Any = stored
        ) -> None:
            mine = [answer(*key) for key in random.sample(stored, len(stored))]
            found = await asyncio.gather(*map(one.settling.submit, mine))
            for outcome, settled in zip(mine, found, strict=True):
                told[outcome.question_id] += isinstance(settled, Settled)

        deletions = (delete(replicas[n % 2], id) for n, id in enumerate(leaving))
        await together(*map(settle, writings), *deletions)
        for question_id, user_id in stored:
            assert told[question_id] <= 1
            assert told[question_id] or user_id in leaving
        left = ", ".join(str(person) for person in people if person not in leaving)
        # Three tokens a question, six questions each, and none paid twice.
        spent = "SELECT count(*) FROM questions_usage WHERE tokens = 18 AND user_id IN"
        assert await count(replicas[0], f"{spent} ({left})") == 3


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, GENEROUS], ids=["no limits", "limits"])
async def test_F15_asking_and_settling_never_wait_in_a_circle(
    replicas: tuple[Database, Database], limits: dict[str, int]
) -> None:
    """Both count for the same people, on either replica (see `replicas`)."""
    people = await make_people(replicas[0], 40)
    writings = [writing(database, **limits) for database in replicas]
    stored: list[tuple[int, int]] = []
    for _ in range(30):
        settling = [answer(*key) for key in stored]
        random.shuffle(settling)
        stored.clear()

        async def ask(one: Writing) -> None:
            mine = random.sample(people, len(people))
            found = await added(one, [question(person) for person in mine])
            for person, new in zip(mine, found, strict=True):
                assert new is not None
                stored.append((new.id, person))

        async def settle(one: Writing, outcomes: Sequence[Outcome]) -> None:
            settled = await asyncio.gather(*map(one.settling.submit, outcomes))
            assert None not in settled

        half = len(settling) // 2
        await together(
            *map(ask, writings),
            settle(writings[0], settling[:half]),
            settle(writings[1], settling[half:]),
        )
    everybody = ", ".join(map(str, people))
    counted = (
        "SELECT count(*) FROM questions_usage WHERE questions = 60 AND tokens = 174"
        f" AND user_id IN ({everybody})"
    )
    assert await count(replicas[0], counted) == len(people)


@asynccontextmanager
async def in_the_way(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of somebody else's, who has more patience in a circle than us."""
    address = make_url(url).set(drivername="postgresql")
    connection = await asyncpg.connect(address.render_as_string(hide_password=False))
    try:
        await connection.execute("SET deadlock_timeout = '20s'")
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("what", ["add", "settle"])
async def test_F15_a_batch_that_a_deadlock_ended_is_written_all_the_same(
    databases: Databases, url: str, what: str
) -> None:
    told = len(databases.postgres.log)
    async with connected(url) as database:
        first, second = await make_people(database, 2)
        one = writing(database)
        asking = [question(first), question(second)]
        stored = await added(one, asking if what == "settle" else [])
        async with in_the_way(url) as other:
            lock = "SELECT id FROM users WHERE id = $1 FOR UPDATE"
            await other.execute(lock, second)
            waiting: list[asyncio.Future[Any]] = []
            if what == "add":
                waiting += map(one.adding.submit, asking)
            for new, was in zip(asking, stored, strict=False):
                assert was is not None
                waiting.append(one.settling.submit(answer(was.id, new.user_id)))
            async with asyncio.timeout(60):
                await somebody_waits(other)
                # The batch holds the first, and waits for the second.
                await other.execute(lock, first)
        async with asyncio.timeout(60):
            assert None not in await asyncio.gather(*waiting)
    assert databases.postgres.log[told:].count("deadlock detected") == 1


async def somebody_waits(connection: asyncpg.Connection, count: int = 1) -> None:
    """Wait until so many wait for a lock."""
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while await connection.fetchval(waits) < count:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("limits", [{}, GENEROUS], ids=["no limits", "limits"])
async def test_F12_a_question_is_stored_by_a_connection_that_died_long_ago(
    url: str, limits: dict[str, int]
) -> None:
    """The server goes on with what it was told; meanwhile it is told once more."""
    async with mortal(url) as (wire, death), connected(wire) as database:
        (ada,) = await make_people(database, 1)
        async with in_the_way(url) as other:
            await other.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", ada)
            death.moment, death.times = "during", 1
            new = NewQuestion(ada, "Why?", f"{MARK}{uuid.uuid4().hex}")
            one = writing(database, **limits)
            told = one.adding.submit(new)
            async with asyncio.timeout(60):
                await somebody_waits(other, 2)
        async with asyncio.timeout(60):
            stored = await told
        assert stored is not None
        mine = f"SELECT id FROM questions WHERE user_id = {ada}"
        assert await count(database, mine) == stored.id
        assert await count(database, f"SELECT count(*) FROM ({mine}) AS mine") == 1


async def test_A20_a_key_that_another_replica_stores_just_now_is_refused(
    url: str,
) -> None:
    """Not seen when the statement begins, and there when it comes to insert."""
    async with connected(url) as database:
        (ada,) = await make_people(database, 1)
        async with in_the_way(url) as other:
            await other.execute(
                "INSERT INTO questions"
                " (user_id, content, idempotency_key, client_key, fingerprint)"
                " VALUES ($1, 'Why?', 'theirs', 'k', 'f')",
                ada,
            )
            waiting = writing(database).adding.submit(question(ada, "k"))
            async with asyncio.timeout(60):
                await somebody_waits(other)
        async with asyncio.timeout(60):
            assert await waiting is None
