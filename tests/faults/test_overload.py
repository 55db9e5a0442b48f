"""Failing and slow backends under many questions: who is asked, and how often.

Real providers over real sockets, below a clock that the test turns.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from providers.backend import Backend, Timing
from providers.breaker import State
from providers.failover import FailoverChat
from providers.openai_chat import OpenAIOptions, open_openai
from providers.public import (
    Answer,
    Progress,
    ProviderBusy,
    ProviderError,
    ProviderFailed,
    ProviderUnavailable,
)
from providers.settings import LlmSettings
from tests.conftest import Databases, served
from tests.support.api import assert_problem
from tests.support.config import write_config
from tests.support.upstream import (
    Received,
    Upstream,
    Wire,
    answers,
    upstream_of_its_own,
)


class Time:
    """A clock that moves when somebody sleeps, or the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Overload:
    """A chat over some fake backends, and what they were asked."""

    def __init__(self, chat: FailoverChat, fakes: list[Upstream], time: Time) -> None:
        self.chat = chat
        self.fakes = fakes
        self.time = time

    @property
    def asked(self) -> list[int]:
        return [len(fake.requests) for fake in self.fakes]

    async def ask(self) -> Answer | ProviderError:
        """One question's answer, or how it failed."""
        try:
            return await self.chat.answer("Why?", Progress())
        except ProviderError as error:
            return error


Make = Callable[..., Any]


@pytest.fixture
async def overload() -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(count: int = 1, **options: Any) -> Overload:
            time = Time()
            timing = Timing(lambda: time.now, time.sleep, lambda: 0.5)
            fakes, backends = [], []
            for number in range(count):
                fake = await stack.enter_async_context(upstream_of_its_own())
                table = {"type": "openai", "base_url": fake.base_url, "model": "m"}
                told = OpenAIOptions.model_validate(table | options)
                model = await stack.enter_async_context(open_openai("x", told))
                fakes.append(fake)
                backends.append(Backend(f"p{number}", model, told, timing))
            return Overload(FailoverChat(backends, LlmSettings(), timing), fakes, time)

        yield make


async def fails(wire: Wire, received: Received) -> None:
    await wire.respond(status="500 Internal Server Error")


async def test_U30_a_backend_that_always_fails_is_hardly_asked_more(
    overload: Make,
) -> None:
    case = await overload(breaker_calls=0)
    case.fakes[0].behaviour = fails
    assert isinstance(await case.ask(), ProviderFailed)
    assert case.asked == [2]
    for _ in range(199):
        assert isinstance(await case.ask(), ProviderFailed)
    # Ten retries that were saved up, and one for every ten questions.
    assert 220 <= case.asked[0] <= 231


async def test_U30_three_backends_that_fail_are_asked_once_each(
    overload: Make,
) -> None:
    case = await overload(count=4)
    for fake in case.fakes:
        fake.behaviour = fails
    assert isinstance(await case.ask(), ProviderFailed)
    assert case.asked == [1, 1, 1, 0]


async def test_U31_a_backend_that_fails_half_of_the_time_is_left_alone_and_tried_out(
    overload: Make,
) -> None:
    case = await overload()
    (fake,) = case.fakes
    (backend,) = case.chat.backends

    async def fail_every_other(wire: Wire, received: Received) -> None:
        await (fails if len(fake.requests) % 2 else answers)(wire, received)

    fake.behaviour = fail_every_other
    for _ in range(20):
        if backend.breaker.wait_seconds:
            break
        await case.ask()
    assert 10 <= case.asked[0] <= 12
    fake.requests.clear()
    refused = await case.ask()
    assert isinstance(refused, ProviderUnavailable)
    assert refused.retry_after_seconds == 10
    assert case.asked == [0]

    case.time.now += 10
    async with fake.stalled() as release:
        probe = asyncio.create_task(case.ask())
        await fake.asked()
        assert backend.breaker.state is State.HALF_OPEN
        others = await asyncio.gather(*(case.ask() for _ in range(20)))
        assert {type(other) for other in others} == {ProviderUnavailable}
        assert case.asked == [1]
        release.set()
        assert isinstance(await probe, Answer)
    assert backend.breaker.wait_seconds == 0
    assert isinstance(await case.ask(), Answer)


async def test_U32_a_slow_backend_fills_only_its_own_places(overload: Make) -> None:
    case = await overload(count=2, max_concurrency=2, max_waiting=0)
    slow, healthy = case.fakes
    async with slow.stalled() as release:
        held = [asyncio.create_task(case.ask()) for _ in range(2)]
        await slow.asked(2)
        for _ in range(10):
            answer = await case.ask()
            assert isinstance(answer, Answer)
            assert answer.provider == "p1"
        assert case.asked == [2, 10]
        release.set()
        assert {(await one).provider for one in held} == {"p0"}
    assert healthy.requests


async def test_U34_so_many_in_flight_so_many_waiting_and_no_more(
    overload: Make,
) -> None:
    case = await overload(max_concurrency=64, max_waiting=64, wait_seconds=30)
    (fake,) = case.fakes
    (backend,) = case.chat.backends
    async with fake.stalled() as release:
        asking = [asyncio.create_task(case.ask()) for _ in range(128)]
        await fake.asked(64)
        one_more = await case.ask()
        assert isinstance(one_more, ProviderBusy)
        assert one_more.retry_after_seconds == 1
        assert (case.asked, backend.bulkhead.in_flight) == ([64], 64)
        release.set()
        answers_given = await asyncio.gather(*asking)
    assert {type(answer) for answer in answers_given} == {Answer}
    assert (case.asked, backend.bulkhead.in_flight) == ([128], 0)
    # Connections are as many as places, however many ask.
    assert fake.connections <= 64


@asynccontextmanager
async def one_place(
    folder: Path, databases: Databases, kind: str, upstream: Upstream, places: str
) -> AsyncIterator[Any]:
    file = write_config(
        folder / "app.toml",
        await databases.migrated(kind),
        upstream.base_url,
        providers__main=f"max_concurrency = 1\n{places}",
    )
    async with served(file) as (_, api):
        yield api


@pytest.mark.slow
@pytest.mark.parametrize(
    "places", ["max_waiting = 0", "max_waiting = 1\nwait_seconds = 0.3"]
)
async def test_U34_who_finds_no_place_is_told_when_to_come_again(
    tmp_path: Path,
    databases: Databases,
    database_kind: str,
    upstream: Upstream,
    places: str,
) -> None:
    async with (
        one_place(tmp_path, databases, database_kind, upstream, places) as api,
        upstream.stalled() as release,
    ):
        ada = await api.account()
        first = asyncio.create_task(api.ask(ada, "First?"))
        await upstream.asked()
        answer = await api.ask(ada, "Second?")
        problem = assert_problem(answer, 503, "busy")
        assert answer.headers["retry-after"] == "1"
        assert [a["outcome"] for a in problem["attempts"]] == ["busy"]
        stored = (await api.newest(ada))[0]
        assert (stored["status"], stored["error_code"]) == ("failed", "busy")
        release.set()
        assert (await first).status_code == 201
