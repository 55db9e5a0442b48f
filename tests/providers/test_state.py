"""GET /providers: what an administrator sees of who answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema_rs

from core.testing import Running
from providers.backend import Backend, Timing
from providers.failover import FailoverChat
from tests.conftest import assert_no_canary, make_admin, served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.upstream import KEY, Received, Upstream, Wire, completion

NAMED = {"VOPROS_LLM__PROVIDER": "first"}


@asynccontextmanager
async def two_providers(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> AsyncIterator[tuple[Running, Api, Account]]:
    """`first`, left alone after four failures, then `reserve`; and an administrator."""
    table = (
        f'type = "openai"\nbase_url = "{upstream.base_url}"\nmodel = "{{model}}"\n'
        f'api_key = "{KEY}"\nheaders = {{{{ X-Extra = "{KEY}" }}}}\nbreaker_calls = 4'
    )
    file = write_config(
        tmp_path / "app.toml",
        database_url,
        llm='fallback = ["reserve"]',
        providers__first=table.format(model="large"),
        providers__reserve=table.format(model="small"),
    )
    async with served(file, NAMED) as (found, api):
        yield found, api, await make_admin(found, api)


async def states(api: Api, who: Account) -> list[dict[str, Any]]:
    answer = await api.get("/providers", who)
    assert answer.status_code == 200, answer.text
    assert_no_canary(answer.text)
    found: list[dict[str, Any]] = answer.json()
    return found


async def first_state(api: Api, who: Account) -> dict[str, Any]:
    return (await states(api, who))[0]


def large_says(status: str, headers: str = "") -> Any:
    """The model `large` always answers so; any other is well."""

    async def behave(wire: Wire, received: Received) -> None:
        if received.json["model"] == "large":
            await wire.respond({}, status=status, headers=headers)
        else:
            await wire.respond(completion())

    return behave


async def test_an_administrator_sees_who_is_asked_in_which_order_on_what(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with two_providers(tmp_path, database_url, upstream) as (_, api, admin):
        found = await states(api, admin)
    well = {
        "type": "openai",
        "state": "closed",
        "open_until": None,
        "last_error": None,
        "in_flight": 0,
    }
    assert found == [
        {"name": "first", "model": "large", **well},
        {"name": "reserve", "model": "small", **well},
    ]


async def test_nobody_else_sees_it(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with two_providers(tmp_path, database_url, upstream) as (_, api, _admin):
        ada = await api.account()
        assert_problem(await api.get("/providers", ada), 403, "admins_only")
        assert_problem(await api.get("/providers"), 401, "token_missing")


async def test_a_question_is_in_flight_until_it_is_answered(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with two_providers(tmp_path, database_url, upstream) as (_, api, admin):
        async with upstream.stalled() as release:
            pending = asyncio.create_task(api.ask(admin, "How long?"))
            await upstream.asked()
            assert [one["in_flight"] for one in await states(api, admin)] == [1, 0]
            release.set()
            assert (await pending).status_code == 201
        assert [one["in_flight"] for one in await states(api, admin)] == [0, 0]


async def test_a_single_failure_is_told_and_changes_nothing_else(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with two_providers(tmp_path, database_url, upstream) as (_, api, admin):
        async with upstream.behaving(large_says("500 Oh")):
            assert (await api.ask(admin, "Who?")).json()["provider"] == "reserve"
        first, reserve = await states(api, admin)
    assert first["last_error"] == "provider_failed"
    assert (first["state"], first["open_until"]) == ("closed", None)
    assert reserve["last_error"] is None


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def with_clock(found: Running, clock: Clock) -> None:
    """Let the first provider's breaker go by this clock."""
    chat = found.service(FailoverChat)
    first, *others = chat.backends
    timing = Timing(clock=clock, random=lambda: 0.5)
    chat.backends = (Backend(first.name, first.model, first.options, timing), *others)


async def test_U31_it_is_shown_open_then_half_open_then_closed_again(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    clock = Clock()
    async with two_providers(tmp_path, database_url, upstream) as (found, api, admin):
        with_clock(found, clock)
        async with upstream.behaving(large_says("500 Oh")):
            for _ in range(3):
                answer = await api.ask(admin, "Who?")
                assert answer.json()["provider"] == "reserve"
        shown = await first_state(api, admin)
        assert (shown["state"], shown["last_error"]) == ("open", "provider_failed")
        assert_from_now(shown["open_until"], seconds=10)

        clock.now += 10.1
        shown = await first_state(api, admin)
        assert (shown["state"], shown["open_until"]) == ("half_open", None)

        async with upstream.stalled() as release:
            probe = asyncio.create_task(api.ask(admin, "Better?"))
            await upstream.asked()
            shown = await first_state(api, admin)
            assert (shown["state"], shown["in_flight"]) == ("half_open", 1)
            release.set()
            assert (await probe).json()["provider"] == "first"
        shown = await first_state(api, admin)
        assert (shown["state"], shown["open_until"]) == ("closed", None)


async def test_U19_one_that_asked_for_a_pause_is_shown_cooling(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with two_providers(tmp_path, database_url, upstream) as (_, api, admin):
        pause = "Retry-After: 30\r\n"
        async with upstream.behaving(large_says("429 Slow down", headers=pause)):
            assert (await api.ask(admin, "Who?")).json()["provider"] == "reserve"
        shown = await first_state(api, admin)
    assert shown["state"] == "cooling"
    assert shown["last_error"] == "provider_rate_limited"
    assert_from_now(shown["open_until"], seconds=30)


def assert_from_now(moment: str, *, seconds: float) -> None:
    """It lies so many seconds ahead, or as much less as the test took to look."""
    ahead = datetime.fromisoformat(moment) - datetime.now(UTC)
    assert timedelta(seconds=seconds - 5) < ahead <= timedelta(seconds=seconds)


async def test_the_document_says_what_it_answers_and_refuses(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with two_providers(tmp_path, database_url, upstream) as (_, api, admin):
        document = (await api.get("/openapi.json")).json()
        found = await states(api, admin)
    operation = document["paths"]["/providers"]["get"]
    assert operation["tags"] == ["providers"]
    answered = operation["responses"].pop("200")["content"]["application/json"]
    components = {"components": document["components"]}
    jsonschema_rs.validate(answered["schema"] | components, found)
    fields = document["components"]["schemas"]["ProviderRead"]["properties"]
    assert all(told["examples"] for told in fields.values())
    for code in ("401", "403", "default"):
        problem = operation["responses"][code]["content"]["application/problem+json"]
        assert problem["examples"], code
