"""Two server processes on one PostgreSQL: keys and limits hold over both."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from core.db import Database, db_after
from modules.questions.models import BudgetRow, QuestionRow, UsageRow
from tests.conftest import Databases, connected
from tests.questions.test_idempotency import (
    BOTH,
    assert_asked_once,
    is_replayed,
    new_key,
    post,
)
from tests.questions.test_limits import ASKED, left, let_in
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.process import serving
from tests.support.slow import slow_inserts, waiting
from tests.support.upstream import Upstream, answers, completion


@dataclass(frozen=True)
class Replicas:
    """Two servers of one configuration."""

    one: Api
    other: Api
    database: Database

    def turns(self, count: int) -> list[Api]:
        """So many calls, half of them of each."""
        return list(itertools.islice(itertools.cycle((self.one, self.other)), count))

    async def ask_many(self, *people: Account, times: int) -> list[httpx.Response]:
        """Each asks so often, all at once, half of it on each."""
        asking = [
            api.ask_when_busy(who, f"{n}?")
            for n, api in enumerate(self.turns(times))
            for who in people
        ]
        return list(await asyncio.gather(*asking))


@asynccontextmanager
async def replicas(
    folder: Path, databases: Databases, upstream: Upstream, limits: str = ""
) -> AsyncIterator[Replicas]:
    url = await databases.migrated("postgresql")
    file = write_config(
        folder / "app.toml", url, upstream.base_url, questions=limits or "in_flight = 0"
    )
    told = len(databases.postgres.log)
    with serving("--config", file) as one, serving("--config", file) as other:
        clients = Api(one.url), Api(other.url)
        try:
            async with connected(url) as database:
                yield Replicas(*clients, database)
        finally:
            for client in clients:
                await client.close()
        for server in (one, other):
            assert "Traceback" not in server.log
    assert "deadlock detected" not in databases.postgres.log[told:]


@pytest.fixture(scope="module")
async def pair(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: Upstream
) -> AsyncIterator[Replicas]:
    """Replicas without limits."""
    folder = tmp_path_factory.mktemp("pair")
    async with replicas(folder, databases, upstream) as found:
        yield found


@pytest.fixture
async def ada(pair: Replicas) -> Account:
    """Somebody new, known to both."""
    return await pair.one.account()


@pytest.mark.parametrize("path", BOTH)
async def test_A20_fifty_posts_of_one_key_over_two_replicas_ask_once(
    pair: Replicas, ada: Account, upstream: Upstream, path: str
) -> None:
    for _ in range(3):
        key = new_key()
        async with upstream.behaving(answers):
            got = await asyncio.gather(
                *(post(api, path, ada, key) for api in pair.turns(ASKED))
            )
            assert len(upstream.requests) == 1
        assert_asked_once(list(got))


async def test_A20_many_keys_at_once_over_two_replicas_are_asked_once_each(
    pair: Replicas, upstream: Upstream
) -> None:
    """Whatever shares a statement: each key of each person is one question."""
    people = [await pair.one.account() for _ in range(4)]
    keys = [new_key() for _ in range(5)]
    asked = [(who, key) for who in people for key in keys]
    async with upstream.behaving(answers):
        got = await asyncio.gather(
            *(
                post(api, "/questions", who, key, f"{key}?")
                for who, key in asked
                for api in pair.turns(4)
            )
        )
        assert len(upstream.requests) == len(asked)
    for n in range(len(asked)):
        assert_asked_once(list(got[4 * n : 4 * n + 4]))


@pytest.mark.parametrize("path", BOTH)
async def test_F31_what_is_being_answered_is_in_progress_on_the_other_replica(
    pair: Replicas, ada: Account, upstream: Upstream, path: str
) -> None:
    key = new_key()
    async with upstream.stalled() as release:
        asking = asyncio.create_task(post(pair.one, path, ada, key))
        await upstream.asked()
        refused = await post(pair.other, path, ada, key)
        problem = assert_problem(refused, 409, "request_in_progress")
        assert int(refused.headers["retry-after"]) > 0
        assert problem["question_id"] == (await pair.other.newest(ada))[0]["id"]
        reused = await post(pair.other, path, ada, key, "Another?")
        assert_problem(reused, 422, "idempotency_key_reused")
        release.set()
        first = await asking
        assert len(upstream.requests) == 1
    again = await post(pair.other, path, ada, key)
    assert (first.is_success, again.is_success) == (True, True)
    assert (is_replayed(first), is_replayed(again)) == (False, True)
    if path == "/questions":
        assert again.json() == first.json()


@pytest.mark.slow
async def test_A19_of_fifty_at_once_two_are_in_flight_over_two_replicas(
    tmp_path: Path, databases: Databases, upstream: Upstream
) -> None:
    async with replicas(tmp_path, databases, upstream, "in_flight = 2") as pair:
        ada = await pair.one.account()
        async with upstream.stalled() as release:
            asking = {
                asyncio.create_task(api.ask(ada, f"{n}?"))
                for n, api in enumerate(pair.turns(ASKED))
            }
            refused: set[asyncio.Task[httpx.Response]] = set()
            async with asyncio.timeout(30):
                while len(refused) < ASKED - 2:
                    await asyncio.wait(asking - refused, return_when="FIRST_COMPLETED")
                    refused = {task for task in asking if task.done()}
            assert let_in([t.result() for t in refused], "too_many_in_flight") == 0
            await upstream.asked(2)
            pending = await pair.one.newest(ada)
            assert [question["status"] for question in pending] == ["pending"] * 2
            release.set()
            for task in asking - refused:
                assert (await task).status_code == 201


async def counts_tokens(wire: Any, received: Any) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 7}
    await wire.respond(completion("Yes.", usage=usage))


@pytest.mark.slow
async def test_A19_what_one_may_ask_is_exact_over_two_replicas(
    tmp_path: Path, databases: Databases, upstream: Upstream
) -> None:
    limits = "per_minute = 7\nper_day = 12"
    async with replicas(tmp_path, databases, upstream, limits) as pair:
        people = [await pair.one.account() for _ in range(3)]
        for code, most in (("minute_limit_reached", 7), ("daily_limit_reached", 5)):
            async with upstream.behaving(answers):
                got = await pair.ask_many(*people, times=ASKED)
                assert len(upstream.requests) == 3 * most
            assert let_in(got, code) == 3 * most
            asked = Counter(a.json()["user_id"] for a in got if a.status_code == 201)
            assert asked == {who.id: most for who in people}
            async with pair.database.transaction() as session:
                over = update(UsageRow).values(minute_ends_at=db_after(-1))
                await session.execute(over)
        for who in people:
            assert await left(pair.one, who) == await left(pair.other, who)
            assert (await left(pair.one, who))["per_day"] == 0


@pytest.mark.slow
async def test_A19_tokens_and_the_budget_of_all_are_exact_over_two_replicas(
    tmp_path: Path, databases: Databases, upstream: Upstream
) -> None:
    limits = (
        "tokens_per_day = 501\nservice_per_day = 113\nservice_tokens_per_day = 1200"
    )
    async with replicas(tmp_path, databases, upstream, limits) as pair:
        ada, eve, *others = [await pair.one.account() for _ in range(5)]
        async with upstream.behaving(counts_tokens):
            assert let_in(await pair.ask_many(ada, eve, times=50)) == 100
            for who in (ada, eve):
                assert await left(pair.other, who) == {
                    "tokens_per_day": 1,
                    "service_per_day": 13,
                    "service_tokens_per_day": 200,
                }
            got = await pair.ask_many(*others, times=20)
            assert len(upstream.requests) == 113
        assert let_in(got, "service_budget_spent") == 13
        spent = await left(pair.one, ada)
        assert (spent["service_per_day"], spent["service_tokens_per_day"]) == (0, 70)


@pytest.mark.slow
async def test_A19_the_last_question_of_the_budget_is_asked_on_one_replica_only(
    tmp_path: Path, databases: Databases, upstream: Upstream
) -> None:
    """Both replicas are asked before either has committed what it stored."""
    async with replicas(tmp_path, databases, upstream, "service_per_day = 1") as pair:
        ada, eve = [await pair.one.account() for _ in range(2)]
        async with slow_inserts(pair.database):
            asking = [
                asyncio.create_task(pair.one.ask(ada, "Me?")),
                asyncio.create_task(pair.other.ask(eve, "Or me?")),
            ]
            await waiting(pair.database, 2)
        async with upstream.behaving(answers):
            got = await asyncio.gather(*asking)
            # A machine that is slow may have answered both with 503: one is left.
            got.append(await pair.one.ask(ada, "And now?"))
        refused = [answer for answer in got if answer.status_code != 201]
        assert len(refused) >= 2
        codes = {answer.json()["code"] for answer in refused}
        assert "service_budget_spent" in codes
        assert codes <= {"service_budget_spent", "busy"}
        async with pair.database.reading() as session:
            stored = await session.scalar(select(func.count()).select_from(QuestionRow))
            spent = await session.scalar(select(BudgetRow.questions))
        assert (stored, spent) == (1, 1)


async def test_a_question_may_be_deleted_on_another_replica_than_it_was_asked_on(
    pair: Replicas, ada: Account, upstream: Upstream
) -> None:
    async with upstream.stalled() as release:
        asking = asyncio.create_task(pair.one.ask(ada, "Why?"))
        await upstream.asked()
        (pending,) = await pair.other.newest(ada)
        path = f"/questions/{pending['id']}"
        gone = await pair.other.http.delete(path, headers=ada.auth)
        assert gone.status_code == 204
        release.set()
        assert_problem(await asking, 410, "question_withdrawn")
    assert_problem(await pair.one.get(path, ada), 404, "question_not_found")
