"""A question, or its whole account, is deleted while a model thinks about it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import inspect, text

from core.db import Base, Database
from core.testing import Running
from tests.conftest import Databases, connected
from tests.support.api import Account, Api, assert_problem, events_of
from tests.support.config import write_config
from tests.support.process import serving
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    deltas,
    ending,
    framed,
)

both_ways = pytest.mark.parametrize("path", ["/questions", "/questions/stream"])


class Thinker:
    """A model that has begun to answer a stream, and goes on when it is told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.let_go: list[str] = []
        """Questions whose connection was closed before their answer's end."""

    async def __call__(self, wire: Wire, received: Received) -> None:
        is_stream = "stream" in received.json
        if is_stream:
            await wire.send(STREAM_HEAD, *map(framed, deltas("Half ")))
        left = asyncio.create_task(wire.closed_by_client())
        going_on = asyncio.create_task(self.release.wait())
        await asyncio.wait({left, going_on}, return_when=asyncio.FIRST_COMPLETED)
        going_on.cancel()
        if left.done():
            self.let_go.append(received.question)
            return
        left.cancel()
        await asyncio.wait({left})
        if is_stream:
            rest = (*deltas("an answer"), *ending())
            await wire.send(*map(framed, rest), "0\r\n\r\n")
        else:
            await wire.respond(
                {"choices": [{"message": {"content": "Half an answer"}}]}
            )

    async def has_let_go(self, *questions: str) -> None:
        async with asyncio.timeout(1):
            while sorted(self.let_go) != sorted(questions):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def thinking(upstream: Upstream) -> AsyncIterator[Thinker]:
    thinker = Thinker()
    async with upstream.behaving(thinker):
        try:
            yield thinker
        finally:
            thinker.release.set()


async def ask(api: Api, who: Account, path: str, content: str) -> httpx.Response:
    return await api.http.post(path, json={"content": content}, headers=who.auth)


def assert_withdrawn(answer: httpx.Response) -> None:
    """410, as a status or in the last event of a stream that has begun."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        error = events_of(answer.text)[-1]
        assert error.name == "error"
        assert (error.data["status"], error.data["code"]) == (410, "question_withdrawn")
    else:
        assert_problem(answer, 410, "question_withdrawn")


async def delete(api: Api, who: Account, path: str) -> None:
    """At once, whatever is going on."""
    async with asyncio.timeout(1):
        gone = await api.http.delete(path, headers=who.auth)
    assert gone.status_code == 204, gone.text


async def left_of(database: Database, user_id: int) -> dict[str, int]:
    """How many rows of any table belong to somebody."""
    found = {}
    async with database.reading() as session:
        connection = await session.connection()
        there = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        # Other tests have modules of their own, with tables that this one has not.
        known = [t for t in Base.metadata.sorted_tables if t.name in there]
        for table in known:
            owner = "user_id" if "user_id" in table.c else None
            if table.name == "users":
                owner = "id"
            if owner is not None:
                count = f"SELECT count(*) FROM {table.name} WHERE {owner} = {user_id}"
                found[table.name] = await session.scalar(text(count)) or 0
    assert {"users", "questions", "questions_usage", "auth_sessions"} <= found.keys()
    return found


@both_ways
async def test_F34_A24_who_leaves_is_gone_at_once_with_all_they_have_asked(
    api: Api,
    ada: Account,
    upstream: Upstream,
    service: Running,
    path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    eve = await api.account()
    async with thinking(upstream) as thinker:
        asking = [
            asyncio.create_task(ask(api, ada, path, f"Number {n}?")) for n in range(3)
        ]
        of_another = asyncio.create_task(ask(api, eve, path, "Of another?"))
        await upstream.asked(4)
        await delete(api, ada, "/users/me")
        await thinker.has_let_go(*(f"Number {n}?" for n in range(3)))
        async with asyncio.timeout(2):
            for answer in asking:
                assert_withdrawn(await answer)
        assert not of_another.done()
        assert (await api.newest(eve))[0]["status"] == "pending"
        thinker.release.set()
        assert (await of_another).is_success
    assert (await api.newest(eve))[0]["status"] == "answered"
    assert not any((await left_of(service.service(Database), ada.id)).values())
    assert "request.failed" not in caplog.messages


@both_ways
async def test_F34_a_question_that_is_deleted_ends_alone(
    api: Api, ada: Account, upstream: Upstream, service: Running, path: str
) -> None:
    async with thinking(upstream) as thinker:
        first = asyncio.create_task(ask(api, ada, path, "First?"))
        await upstream.asked()
        other = asyncio.create_task(ask(api, ada, path, "Other?"))
        await upstream.asked(2)
        question_id = next(
            q["id"] for q in await api.newest(ada) if q["content"] == "First?"
        )
        await delete(api, ada, f"/questions/{question_id}")
        await thinker.has_let_go("First?")
        async with asyncio.timeout(2):
            assert_withdrawn(await first)
        assert not other.done()
        thinker.release.set()
        assert (await other).is_success
    assert [q["content"] for q in await api.newest(ada)] == ["Other?"]
    assert (await left_of(service.service(Database), ada.id))["questions"] == 1


@pytest.mark.parametrize("what", ["/users/me", "/questions"])
@both_ways
async def test_F34_A24_what_is_deleted_on_another_replica_is_not_answered(
    replicas: tuple[Api, Api],
    database: Database,
    upstream: Upstream,
    path: str,
    what: str,
) -> None:
    """Nobody there knows whom to tell: the model ends, and nothing is stored."""
    one, other = replicas
    ada = await one.account()
    async with thinking(upstream) as thinker:
        asking = asyncio.create_task(ask(one, ada, path, "Why?"))
        await upstream.asked()
        (question,) = await other.newest(ada)
        is_account = what == "/users/me"
        await delete(other, ada, what if is_account else f"{what}/{question['id']}")
        assert not asking.done()
        thinker.release.set()
        assert_withdrawn(await asking)
    left = await left_of(database, ada.id)
    assert left["questions"] == 0
    assert any(left.values()) is not is_account


@pytest.fixture(scope="module")
async def url(databases: Databases) -> str:
    return await databases.migrated("postgresql")


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with connected(url) as found:
        yield found


@pytest.fixture(scope="module")
async def replicas(
    tmp_path_factory: pytest.TempPathFactory, url: str, upstream: Upstream
) -> Any:
    folder: Path = tmp_path_factory.mktemp("replicas")
    file = write_config(folder / "app.toml", url, upstream.base_url)
    with serving("--config", file) as one, serving("--config", file) as other:
        clients = Api(one.url), Api(other.url)
        yield clients
        for client in clients:
            await client.close()
    for server in (one, other):
        assert "Traceback" not in server.log
        assert "request.failed" not in server.log
