"""How much people may ask: counted when a question is stored, exactly."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import update

from core.db import Database, db_after
from core.testing import Running
from modules.questions.models import BudgetRow, UsageRow
from modules.questions.settings import QuestionSettings
from tests.conftest import Databases, served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.upstream import (
    Received,
    Upstream,
    Wire,
    answers,
    completion,
)

ASKED = 50


class Limited(NamedTuple):
    """A service with limits of a test's own."""

    service: Running
    api: Api

    async def change(self, row: type[Any], **columns: Any) -> None:
        """Set columns of every row of a table."""
        async with self.service.service(Database).transaction() as session:
            await session.execute(update(row).values(**columns))


Limiting = Callable[[str], AbstractAsyncContextManager[Limited]]


@pytest.fixture
def limiting(
    tmp_path: Path, databases: Databases, database_kind: str, upstream: Upstream
) -> Limiting:
    @asynccontextmanager
    async def serve(limits: str) -> AsyncIterator[Limited]:
        file = write_config(
            tmp_path / "app.toml",
            await databases.migrated(database_kind),
            upstream.base_url,
            questions=limits,
            # 150 at once on SQLite and a slow machine: being busy is another test.
            database="pool_wait_seconds = 30",
        )
        async with served(file) as (service, api):
            yield Limited(service, api)

    return serve


async def ask_many(
    api: Api, *people: Account, times: int = ASKED, **more: str
) -> list[httpx.Response]:
    """Each asks so often, all at once."""
    asking = [
        api.ask_when_busy(who, f"{n}?", **more) for n in range(times) for who in people
    ]
    return list(await asyncio.gather(*asking))


def let_in(answers: list[httpx.Response], code: str = "") -> int:
    """How many were; all others were refused for this reason."""
    for answer in answers:
        if answer.status_code != 201:
            assert_problem(answer, 429, code)
    return sum(answer.status_code == 201 for answer in answers)


async def left(api: Api, who: Account) -> dict[str, int]:
    """What is left of each limit."""
    answer = await api.get("/questions/limits", who)
    assert answer.status_code == 200, answer.text
    return {limit["name"]: limit["remaining"] for limit in answer.json()["limits"]}


# RFC 9651: a list of strings with parameters that are integers or strings.
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_PARAMETER = rf"; *[a-z*][a-z0-9_.*-]*=(?:-?\d{{1,15}}|{_STRING})"
_MEMBER = rf"{_STRING}(?:{_PARAMETER})*"
_LIST = re.compile(rf"{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER})*")


def structured(field: str) -> dict[str, dict[str, Any]]:
    """The members of a structured field and their parameters."""
    assert _LIST.fullmatch(field), field
    found: dict[str, dict[str, Any]] = {}
    for member in re.findall(_MEMBER, field):
        name, *parameters = member.split(";")
        pairs = (parameter.strip().split("=") for parameter in parameters)
        found[name.strip('"')] = {
            key: value.strip('"') if value.startswith('"') else int(value)
            for key, value in pairs
        }
    return found


async def test_as_shipped_there_is_no_limit(api: Api, ada: Account) -> None:
    answer = await api.get("/questions/limits", ada)
    assert (answer.status_code, answer.json()) == (200, {"limits": []})
    assert let_in(await ask_many(api, ada)) == ASKED


@pytest.mark.slow
async def test_A19_U35_of_fifty_at_once_two_may_wait_for_their_answers(
    limiting: Limiting, upstream: Upstream
) -> None:
    async with limiting("in_flight = 2") as (_, api):
        ada, eve = await api.account(), await api.account()
        async with upstream.stalled() as release:
            asking = [asyncio.create_task(api.ask(ada, f"{n}?")) for n in range(ASKED)]
            done: set[asyncio.Task[httpx.Response]] = set()
            async with asyncio.timeout(20):
                while len(done) < ASKED - 2:
                    done, _ = await asyncio.wait(
                        asking, return_when=asyncio.FIRST_COMPLETED, timeout=0.05
                    )
            await upstream.asked(2)
            pending = await api.newest(ada)
            assert [question["status"] for question in pending] == ["pending"] * 2
            assert let_in([t.result() for t in done], "too_many_in_flight") == 0
            # It is nobody else's limit.
            other = asyncio.create_task(api.ask(eve, "And I?"))
            await upstream.asked(3)
            assert await left(api, ada) == {"in_flight": 0}
            assert await left(api, eve) == {"in_flight": 1}
            release.set()
            answers = [await task for task in asking]
            assert (await other).status_code == 201
        assert let_in(answers, "too_many_in_flight") == 2
        assert await left(api, ada) == {"in_flight": 2}
        assert (await api.ask(ada, "Now?")).status_code == 201


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "code"),
    [("per_minute", "minute_limit_reached"), ("per_day", "daily_limit_reached")],
)
async def test_A19_of_fifty_at_once_as_many_are_asked_as_somebody_may(
    limiting: Limiting, upstream: Upstream, limit: str, code: str
) -> None:
    async with limiting(f"{limit} = 7") as (_, api):
        people = [await api.account() for _ in range(3)]
        async with upstream.behaving(answers):
            got = await ask_many(api, *people)
            assert len(upstream.requests) == 21
        assert let_in(got, code) == 21
        # Those who share a statement take nothing from each other.
        asked = Counter(a.json()["user_id"] for a in got if a.status_code == 201)
        assert asked == {who.id: 7 for who in people}
        for who in people:
            assert await left(api, who) == {limit: 0}


@pytest.mark.slow
async def test_A19_of_fifty_at_once_as_many_are_asked_as_all_together_may(
    limiting: Limiting, upstream: Upstream
) -> None:
    async with limiting("service_per_day = 13\nper_day = 5") as (_, api):
        people = [await api.account() for _ in range(5)]
        async with upstream.behaving(answers):
            got = await ask_many(api, *people, times=10)
            assert len(upstream.requests) == 13
        asked = Counter(a.json()["user_id"] for a in got if a.status_code == 201)
        assert sum(asked.values()) == 13
        assert max(asked.values()) <= 5
        refused = {a.json()["code"] for a in got if a.status_code != 201}
        assert refused <= {"service_budget_spent", "daily_limit_reached"}
        for who in people:
            assert await left(api, who) == {
                "per_day": 5 - asked[who.id],
                "service_per_day": 0,
            }


async def counts_tokens(wire: Wire, received: Received) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 7}
    await wire.respond(completion("Yes.", usage=usage))


async def counts_nothing(wire: Wire, received: Received) -> None:
    await wire.respond(completion("Yes.", usage={}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("tokens_per_day", "daily_tokens_spent"),
        ("service_tokens_per_day", "service_budget_spent"),
    ],
)
async def test_A19_tokens_are_those_that_answers_took(
    limiting: Limiting, upstream: Upstream, limit: str, code: str
) -> None:
    async with limiting(f"{limit} = 501") as (_, api):
        ada, eve = await api.account(), await api.account()
        async with upstream.behaving(counts_tokens):
            # What was let in is answered; each batch is paid for to the token.
            assert let_in(await ask_many(api, ada, times=49), code) == 49
            assert await left(api, ada) == {limit: 11}
            async with upstream.behaving(counts_nothing):
                assert (await api.ask(ada, "For nothing?")).status_code == 201
            assert await left(api, ada) == {limit: 11}
        async with upstream.behaving(counts_tokens):
            assert (await api.ask(ada, "One left?")).status_code == 201
            assert await left(api, ada) == {limit: 1}
            assert (await api.ask(ada, "And one?")).status_code == 201
            assert let_in(await ask_many(api, ada), code) == 0
        is_own = limit == "tokens_per_day"
        assert await left(api, eve) == {limit: 501 if is_own else 0}
        assert (await api.ask(eve, "I too?")).status_code == (201 if is_own else 429)


async def test_deleting_a_question_gives_nothing_back(limiting: Limiting) -> None:
    limits = "per_day = 2\nper_minute = 2\ntokens_per_day = 900\nservice_per_day = 9"
    async with limiting(limits) as (_, api):
        ada = await api.account()
        for answer in await ask_many(api, ada, times=2):
            path = f"/questions/{answer.json()['id']}"
            gone = await api.http.delete(path, headers=ada.auth)
            assert gone.status_code == 204
        assert await api.newest(ada) == []
        assert await left(api, ada) == {
            "per_minute": 0,
            "per_day": 0,
            "tokens_per_day": 900 - 2 * 46,
            "service_per_day": 7,
        }
        # Of both limits, the one that lasts longer.
        refused = await api.ask(ada, "One more?")
        assert_problem(refused, 429, "daily_limit_reached")


@pytest.mark.slow
async def test_what_is_told_again_costs_nothing(limiting: Limiting) -> None:
    limits = "per_day = 1\nin_flight = 1\nservice_per_day = 1"
    async with limiting(limits) as (_, api):
        ada = await api.account()
        first = await api.ask(ada, "Why?", Idempotency_Key="a")
        used = await left(api, ada)
        again = await ask_many(api, ada, times=1, Idempotency_Key="b")
        assert let_in(again, "daily_limit_reached") == 0
        for _ in range(3):
            again_told = await api.ask(ada, "Why?", Idempotency_Key="a")
            assert again_told.json() == first.json()
            assert again_told.headers["idempotency-replayed"] == "true"
        # Neither does what is refused for its key.
        other = await api.ask(ada, "How?", Idempotency_Key="a")
        assert_problem(other, 422, "idempotency_key_reused")
        assert await left(api, ada) == used


@pytest.mark.slow
async def test_what_a_limit_refuses_leaves_its_key_free(limiting: Limiting) -> None:
    async with limiting("per_minute = 1") as limited:
        api = limited.api
        ada = await api.account()
        await api.ask(ada, "First?")
        refused = await api.ask(ada, "Second?", Idempotency_Key="k")
        assert_problem(refused, 429, "minute_limit_reached")
        await limited.change(UsageRow, minute_ends_at=db_after(-1))
        answer = await api.ask(ada, "Second?", Idempotency_Key="k")
        assert answer.status_code == 201
        assert "idempotency-replayed" not in answer.headers


@pytest.mark.slow
async def test_an_expired_minute_and_a_new_day_start_afresh(
    limiting: Limiting,
) -> None:
    limits = "per_minute = 3\nper_day = 5\nservice_per_day = 8\ntokens_per_day = 400"
    async with limiting(limits) as limited:
        api = limited.api
        ada = await api.account()
        assert let_in(await ask_many(api, ada, times=9), "minute_limit_reached") == 3
        await limited.change(UsageRow, minute_ends_at=db_after(-1))
        assert (await left(api, ada))["per_minute"] == 3
        assert let_in(await ask_many(api, ada, times=9), "daily_limit_reached") == 2
        assert await left(api, ada) == {
            "per_minute": 1,
            "per_day": 0,
            "tokens_per_day": 400 - 5 * 46,
            "service_per_day": 3,
        }
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        await limited.change(UsageRow, day=yesterday, minute_ends_at=db_after(-1))
        await limited.change(BudgetRow, day=yesterday)
        fresh = {
            "per_minute": 3,
            "per_day": 5,
            "tokens_per_day": 400,
            "service_per_day": 8,
        }
        assert await left(api, ada) == fresh
        assert let_in(await ask_many(api, ada, times=9), "minute_limit_reached") == 3
        assert await left(api, ada) == {
            "per_minute": 0,
            "per_day": 2,
            "tokens_per_day": 400 - 3 * 46,
            "service_per_day": 5,
        }


async def test_a_minute_begins_with_its_first_question(limiting: Limiting) -> None:
    async with limiting("per_minute = 2") as limited:
        api = limited.api
        ada = await api.account()
        await api.ask(ada, "First?")
        await limited.change(UsageRow, minute_ends_at=db_after(20))
        await api.ask(ada, "Second?")
        refused = await api.ask(ada, "Third?")
        assert_problem(refused, 429, "minute_limit_reached")
        # The second has not put it off.
        assert 15 <= int(refused.headers["retry-after"]) <= 20


@pytest.mark.slow
async def test_what_is_refused_says_why_and_when_to_come_again(
    limiting: Limiting,
) -> None:
    limits = (
        "in_flight = 4\nper_minute = 1\nper_day = 50\ntokens_per_day = 1000\n"
        "service_per_day = 100\nservice_tokens_per_day = 999999999999999"
    )
    async with limiting(limits) as (_, api):
        ada = await api.account()
        await api.ask(ada, "First?")
        for path in ("/questions", "/questions/stream"):
            refused = await api.http.post(
                path, json={"content": "Second?"}, headers=ada.auth
            )
            assert_problem(refused, 429, "minute_limit_reached")
            shown = (await api.get("/questions/limits", ada)).json()["limits"]
            assert 0 < int(refused.headers["retry-after"]) <= 60
            policies = structured(refused.headers["ratelimit-policy"])
            states = structured(refused.headers["ratelimit"])
            assert list(policies) == list(states) == [limit["name"] for limit in shown]
            for limit in shown:
                policy, state = policies[limit["name"]], states[limit["name"]]
                assert policy["q"] == limit["most"]
                assert policy.get("qu", "requests") == limit["unit"]
                assert policy.get("w") == limit["window_seconds"]
                assert state["r"] == limit["remaining"]
                if limit["resets_in_seconds"] is None:
                    assert "t" not in state
                else:
                    assert 0 <= state["t"] - limit["resets_in_seconds"] <= 30
        names = [limit["name"] for limit in shown]
        assert names == [
            *("in_flight", "per_minute", "per_day", "tokens_per_day"),
            *("service_per_day", "service_tokens_per_day"),
        ]
        assert states["service_tokens_per_day"]["r"] == 999_999_999_999_999 - 46


def test_no_limit_is_larger_than_a_header_can_tell() -> None:
    """Fifteen digits: RFC 9651, section 3.3.1."""
    for name, field in QuestionSettings.model_fields.items():
        most = [getattr(bound, "le", None) for bound in field.metadata]
        assert all(bound is None or bound < 10**15 for bound in most), name
