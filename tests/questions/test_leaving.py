"""Whoever asked hangs up: nobody is asked for nothing, and what came is kept."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.testing import Running
from modules.questions.asking import Asking
from modules.questions.writing import Added, NewQuestion
from providers.bulkhead import Bulkhead
from providers.failover import FailoverChat
from providers.public import Answer
from tests.conftest import Databases, connected, served
from tests.support.api import Account, Api
from tests.support.config import write_config
from tests.support.leaver import Leaver, asking
from tests.support.slow import slow_inserts, waiting
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    deltas,
    framed,
)

PLAIN, STREAM = "/questions", "/questions/stream"


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, upstream: Upstream
) -> AsyncIterator[Running]:
    """A service whose provider has one place."""
    file = write_config(
        tmp_path_factory.mktemp("service") / "app.toml",
        database_url,
        upstream.base_url,
        providers__main="max_concurrency = 1\nwait_seconds = 30",
    )
    async with served(file) as (found, _):
        yield found


@pytest.fixture
def bulkhead(service: Running) -> Bulkhead:
    (backend,) = service.service(FailoverChat).backends
    found: Bulkhead = backend.bulkhead
    return found


class Leaving:
    """Somebody's question that has come so far, and what must be left of it."""

    def __init__(self, client: Leaver) -> None:
        self.client = client
        self.was_let_go = asyncio.Event()
        self.answer: str | None = None
        self.outcomes = ["cancelled"]


Phase = Callable[[Api, Account, Upstream, str, Bulkhead], Any]


@asynccontextmanager
async def before_the_first_byte(
    api: Api, who: Account, upstream: Upstream, path: str, _: Bulkhead
) -> AsyncIterator[Leaving]:
    leaving = Leaving(await asking(api, who, "Who waits?", path))

    async def say_nothing(wire: Wire, received: Received) -> None:
        await wire.closed_by_client()
        leaving.was_let_go.set()

    async with upstream.behaving(say_nothing):
        await upstream.asked()
        yield leaving


@asynccontextmanager
async def mid_answer(
    api: Api, who: Account, upstream: Upstream, path: str, _: Bulkhead
) -> AsyncIterator[Leaving]:
    leaving = Leaving(await asking(api, who, "Who waits?", path))

    async def say_half(wire: Wire, received: Received) -> None:
        if path == STREAM:
            await wire.send(STREAM_HEAD, *map(framed, deltas("Half ", "an answer")))
        else:
            head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            await wire.send(f'{head}Content-Length: 999\r\n\r\n{{"choices": [')
        await wire.closed_by_client()
        leaving.was_let_go.set()

    async with upstream.behaving(say_half):
        await upstream.asked()
        if path == STREAM:
            await leaving.client.reader.readuntil(b"an answer")
            leaving.answer = "Half an answer"
        yield leaving


@asynccontextmanager
async def queued_for_a_place(
    api: Api, who: Account, upstream: Upstream, path: str, _: Bulkhead
) -> AsyncIterator[Leaving]:
    async with upstream.stalled() as release:
        eve = await api.account()
        first = asyncio.create_task(api.ask(eve, "First?"))
        await upstream.asked()
        leaving = Leaving(await asking(api, who, "Who waits?", path))
        while not await api.newest(who):
            await asyncio.sleep(0.005)
        # It was never asked.
        leaving.was_let_go.set()
        yield leaving
        assert [sent.question for sent in upstream.requests] == ["First?"]
        release.set()
        assert (await first).status_code == 201


@asynccontextmanager
async def between_two_tries(
    api: Api, who: Account, upstream: Upstream, path: str, bulkhead: Bulkhead
) -> AsyncIterator[Leaving]:
    async def fail_for_a_while(wire: Wire, received: Received) -> None:
        status = "503 Service Unavailable"
        await wire.respond(status=status, headers="Retry-After: 5\r\n")

    async with upstream.behaving(fail_for_a_while):
        leaving = Leaving(await asking(api, who, "Who waits?", path))
        await upstream.asked()
        while bulkhead.in_flight:
            await asyncio.sleep(0.005)
        leaving.was_let_go.set()
        leaving.outcomes = ["provider_overloaded"]
        yield leaving
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("by_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("path", [PLAIN, STREAM])
@pytest.mark.parametrize(
    "phase",
    [before_the_first_byte, mid_answer, queued_for_a_place, between_two_tries],
)
async def test_U36_A13_who_hangs_up_is_answered_no_more_whatever_is_going_on(
    api: Api,
    ada: Account,
    upstream: Upstream,
    bulkhead: Bulkhead,
    phase: Phase,
    path: str,
    by_reset: bool,
) -> None:
    async with phase(api, ada, upstream, path, bulkhead) as leaving:
        assert bulkhead.in_flight == (phase is not between_two_tries)
        leaving.client.hang_up(by_reset=by_reset)
        async with asyncio.timeout(1):
            await leaving.was_let_go.wait()
            question = await api.settled(ada)
        assert bulkhead.in_flight == (phase is queued_for_a_place)
    assert (question["status"], question["error_code"]) == (
        "interrupted",
        "client_gone",
    )
    assert question["answer"] == leaving.answer
    assert [a["outcome"] for a in question["attempts"]] == leaving.outcomes
    # The place is free: the next one need not wait for the rest of a deadline.
    async with asyncio.timeout(2):
        assert (await api.ask(ada, "And now?")).status_code == 201


async def nobody_is_asked(call: Coroutine[Any, Any, Answer]) -> Answer:
    raise AssertionError("it was asked")


async def test_A04_who_is_cancelled_just_when_a_question_is_stored_leaves_none_pending(
    api: Api, service: Running, ada: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = service.service(Asking)
    adding, askers = asking._writing.adding, list[asyncio.Task[Any]]()
    submit = adding.submit

    def submitted(new: NewQuestion) -> asyncio.Future[Added | None]:
        future: asyncio.Future[Added | None] = submit(new)
        # Before whoever waits for it is woken.
        future.add_done_callback(lambda _: askers[0].cancel())
        return future

    monkeypatch.setattr(adding, "submit", submitted)
    askers.append(asyncio.create_task(asking.ask(ada.id, "Why?", nobody_is_asked)))
    await asyncio.wait(askers)
    assert askers[0].cancelled()
    question = await api.settled(ada)
    assert (question["status"], question["error_code"]) == (
        "interrupted",
        "server_shutdown",
    )


async def test_A04_who_is_cancelled_while_a_question_is_stored_leaves_none_pending(
    databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    """As a server does with a request that outlasts its own patience."""
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)

    async with served(file) as (service, api), connected(url) as database:
        ada = await api.account()
        ask = service.service(Asking).ask
        async with slow_inserts(database):
            stored = asyncio.create_task(ask(ada.id, "Why?", nobody_is_asked))
            await waiting(database, 1)
            # This one is not even sent yet.
            queued = asyncio.create_task(ask(ada.id, "How?", nobody_is_asked))
            await asyncio.sleep(0)
            for task in (stored, queued):
                task.cancel()
            await asyncio.wait({stored, queued})
        question = await api.settled(ada)
        assert (question["status"], question["error_code"]) == (
            "interrupted",
            "server_shutdown",
        )
        assert [each["content"] for each in await api.newest(ada)] == ["Why?"]
