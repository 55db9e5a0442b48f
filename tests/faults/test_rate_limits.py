"""A backend that asks to be asked less is asked less, and people are told how long."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.conftest import served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.faults import SAID, ask_once, assert_failed
from tests.support.upstream import (
    KEY,
    Behaviour,
    Received,
    Upstream,
    Wire,
    answers,
)

ECHOES_KEY = {"error": {"message": f"{SAID}: bad key {KEY}"}}


def in_seconds(seconds: int) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return format_datetime(moment, usegmt=True)


WAITS = {
    "U19_a_second": ("1", {1}),
    "U19_nothing_at_all": ("0", {1}),
    "U19_an_hour": ("3600", {60}),
    "U19_500_digits": ("9" * 500, {60}),
    "U19_a_date_tomorrow": (in_seconds(86_400), {60}),
    "U19_a_date_that_has_passed": (in_seconds(-100), {1}),
    "U19_a_date_without_zone": ("Mon, 23 Nov 2026 04:37:18 -0000", {5}),
    "U19_garbage": (f"{SAID}", {5}),
    "U19_negative": ("-5", {5}),
    "U19_none": (None, {5}),
}


def limits(said: str | None) -> Behaviour:
    header = f"Retry-After: {said}\r\n" if said is not None else ""

    async def refuse(wire: Wire, received: Received) -> None:
        status = "429 Too Many Requests"
        await wire.respond(ECHOES_KEY, status=status, headers=header)

    return refuse


@pytest.fixture
async def limited(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> AsyncIterator[Api]:
    """A service of its own: it leaves a provider alone that has said to wait."""
    file = write_config(tmp_path / "app.toml", database_url, upstream.base_url)
    async with served(file) as (_, api):
        yield api


@pytest.mark.slow
@pytest.mark.parametrize(("said", "told"), WAITS.values(), ids=WAITS.keys())
async def test_a_rate_limit_tells_a_bounded_wait(
    limited: Api, upstream: Upstream, said: str | None, told: set[int]
) -> None:
    ada = await limited.account()
    answer = await ask_once(limited, ada, upstream, limits(said))
    await assert_failed(limited, ada, answer, 503, "provider_rate_limited")
    assert int(answer.headers["retry-after"]) in told


async def test_U19_a_near_date_is_told_in_seconds(
    limited: Api, upstream: Upstream
) -> None:
    ada = await limited.account()
    answer = await ask_once(limited, ada, upstream, limits(in_seconds(30)))
    await assert_failed(limited, ada, answer, 503, "provider_rate_limited")
    assert 20 <= int(answer.headers["retry-after"]) <= 31


async def test_U19_a_wait_that_fits_is_waited_for(
    limited: Api, upstream: Upstream
) -> None:
    """Once by who was told to wait; who comes meanwhile is told so at once."""
    ada = await limited.account()
    refused = asyncio.Event()

    async def limit_once(wire: Wire, received: Received) -> None:
        if refused.is_set():
            await answers(wire, received)
            return
        await limits("1")(wire, received)
        refused.set()

    async with upstream.behaving(limit_once):
        waiting = asyncio.create_task(limited.ask(ada, "Then when?"))
        await refused.wait()
        await until_cooling(limited, ada)
        answer = await waiting
    assert answer.status_code == 201, answer.text
    outcomes = [attempt["outcome"] for attempt in answer.json()["attempts"]]
    assert outcomes == ["provider_rate_limited", "answered"]


async def until_cooling(api: Api, who: Account) -> None:
    while (answer := await api.ask(who, "And now?")).status_code == 201:
        pass
    problem = assert_problem(answer, 503, "provider_unavailable")
    assert [a["milliseconds"] for a in problem["attempts"]] == [0]
    assert answer.headers["retry-after"] == "1"
