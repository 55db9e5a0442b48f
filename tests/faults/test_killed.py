"""A server that is killed: every question it leaves behind comes to one end."""

import asyncio
import json
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from core.testing import Running
from modules.questions.upkeep import Upkeep
from tests.conftest import Databases, connected, served
from tests.support.api import Account, Api, Reading, assert_problem, events_of, text_of
from tests.support.config import write_config
from tests.support.process import ServerProcess, serving
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    answers,
    deltas,
    ending,
    framed,
)

KEY = {"Idempotency-Key": "once-and-only-once"}
LOST = ("interrupted", "owner_lost", None)
"""Nothing of an answer is kept that its server had not stored."""


async def kill(server: ServerProcess) -> None:
    await asyncio.to_thread(server.end, signal.SIGKILL)


@asynccontextmanager
async def client(server: ServerProcess) -> AsyncIterator[Api]:
    api = Api(server.url)
    yield api
    await api.close()


@pytest.fixture
async def url(databases: Databases, database_kind: str) -> str:
    """A database of this test's own, of either kind in turn."""
    return await databases.migrated(database_kind)


@pytest.fixture
def file(url: str, upstream: Upstream, tmp_path: Path) -> Path:
    return write_config(tmp_path / "app.toml", url, upstream.base_url)


async def execute(url: str, statement: str) -> None:
    """Run one statement beside the servers."""
    async with connected(url) as database, database.transaction() as session:
        await session.execute(text(statement))


async def all_rows(url: str) -> Sequence[Any]:
    async with connected(url) as database, database.reading() as session:
        found = await session.execute(text("SELECT * FROM questions ORDER BY id"))
        return found.all()


async def stored(url: str) -> list[tuple[Any, ...]]:
    """Every question's status, code and answer."""
    return [(row.status, row.error_code, row.answer) for row in await all_rows(url)]


async def all_ended(url: str, seconds: float) -> list[tuple[Any, ...]]:
    """The same, once nothing is pending any more."""
    async with asyncio.timeout(seconds):
        while "pending" in {status for status, *_ in await stored(url)}:
            await asyncio.sleep(0.05)
    return await stored(url)


async def let_deadlines_pass(url: str) -> None:
    """As if all that is pending had been asked long ago."""
    await execute(
        url, "UPDATE questions SET deadline_at = asked_at WHERE status = 'pending'"
    )


@asynccontextmanager
async def heir(file: Path, url: str, kind: str) -> AsyncIterator[Api]:
    """The next server, which has settled what the last one had left.

    On SQLite at once; on PostgreSQL what is overdue, for others may live.
    """
    if kind == "postgresql":
        await let_deadlines_pass(url)
    async with served(file) as (_, api):
        # Whoever comes first finds nothing pending.
        await all_ended(url, seconds=0.5 if kind == "sqlite" else 10)
        yield api


@contextmanager
def deaf() -> Iterator[str]:
    """The address of a model that takes connections and never reads from them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


async def is_pending(api: Api, ada: Account) -> dict[str, Any]:
    """The newest question, once it is stored."""
    async with asyncio.timeout(60):
        while not (newest := await api.newest(ada)):
            await asyncio.sleep(0.01)
    assert newest[0]["status"] == "pending"
    return newest[0]


async def post(
    api: Api, who: Account, content: str, path: str = "/questions"
) -> httpx.Response:
    """Ask with the key of these tests."""
    headers = who.auth | KEY
    return await api.http.post(path, json={"content": content}, headers=headers)


# F01: nothing had come of the question yet.


@pytest.mark.slow
async def test_F01_A01_a_question_that_no_model_has_read_is_interrupted(
    url: str, database_kind: str, tmp_path: Path
) -> None:
    with deaf() as base_url:
        file = write_config(tmp_path / "app.toml", url, base_url)
        with serving("--config", file) as server:
            async with client(server) as api:
                ada = await api.account()
                asking = asyncio.create_task(post(api, ada, "Why?"))
                pending = await is_pending(api, ada)
                await kill(server)
                with pytest.raises(httpx.TransportError):
                    await asking
        assert [status for status, *_ in await stored(url)] == ["pending"]
        async with heir(file, url, database_kind) as api:
            found = (await api.get(f"/questions/{pending['id']}", ada)).json()
            ended = {"status": "interrupted", "error_code": "owner_lost"}
            assert found == pending | ended


# F02: half of the answer was told.


async def says_half(wire: Wire, received: Received) -> None:
    await wire.send(STREAM_HEAD, *map(framed, deltas("Half an ")))
    await wire.closed_by_client()


@pytest.mark.slow
async def test_F02_A01_A20_a_stream_that_was_cut_by_a_kill_is_not_asked_again(
    file: Path, url: str, database_kind: str, upstream: Upstream
) -> None:
    body = {"content": "Why?"}
    async with upstream.behaving(says_half):
        with serving("--config", file) as server:
            async with client(server) as api:
                ada = await api.account()
                path, headers = "/questions/stream", ada.auth | KEY
                async with api.http.stream(
                    "POST", path, json=body, headers=headers
                ) as response:
                    reading = Reading(response)
                    meta, half = await reading.next(), await reading.next()
                    assert text_of([half]) == "Half an "
                    await kill(server)
                    with pytest.raises(httpx.TransportError):
                        await reading.rest()
        async with heir(file, url, database_kind) as api:
            again = await post(api, ada, "Why?", path)
            problem = assert_problem(again, 503, "owner_lost")
            assert problem["question_id"] == meta.data["id"]
            assert again.headers["idempotency-replayed"] == "true"
        assert len(upstream.requests) == 1
    assert await stored(url) == [LOST]


# F03: the answer was stored, and nobody has read it.


async def send_and_never_read(
    server: ServerProcess, who: Account, content: str, path: str
) -> socket.socket:
    address = urlsplit(server.url)
    body = json.dumps({"content": content}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {who.token}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {KEY['Idempotency-Key']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/questions", "/questions/stream"])
async def test_F03_A20_an_answer_nobody_has_read_is_told_to_who_asks_again(
    file: Path,
    url: str,
    database_kind: str,
    upstream: Upstream,
    path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with upstream.behaving(answers):
        with serving("--config", file) as server:
            async with client(server) as api:
                ada = await api.account()
                with await send_and_never_read(server, ada, "Why?", path):
                    answered = await api.settled(ada)
                    await kill(server)
        async with heir(file, url, database_kind) as api:
            again = await post(api, ada, "Why?", path)
            assert again.headers["idempotency-replayed"] == "true"
            if path == "/questions":
                assert (again.status_code, again.json()) == (201, answered)
            else:
                meta, delta, done = events_of(again.text)
                assert (meta.data["id"], done.data) == (answered["id"], answered)
                assert delta.data["text"] == answered["answer"]
            assert await api.newest(ada) == [answered]
        assert len(upstream.requests) == 1
    assert [r.msg for r in caplog.records if r.levelname == "ERROR"] == []


# F04: one of two is killed.


async def says_nothing_of_what_is_lost(wire: Wire, received: Received) -> None:
    if received.question == "Lost?":
        await wire.closed_by_client()
    else:
        await answers(wire, received)


@pytest.mark.slow
@pytest.mark.soak
async def test_F04_A02_the_survivor_answers_and_ends_what_the_other_left(
    databases: Databases, upstream: Upstream, tmp_path: Path, is_soak: bool
) -> None:
    """In a soak the deadline passes by itself, as it does in production."""
    url = await databases.migrated("postgresql")
    file = write_config(
        tmp_path / "app.toml", url, upstream.base_url, llm="deadline_seconds = 2"
    )
    with serving("--config", file) as one, serving("--config", file) as other:
        async with (
            upstream.behaving(says_nothing_of_what_is_lost),
            client(one) as api,
            client(other) as survivor,
        ):
            ada = await api.account()
            asking = asyncio.create_task(api.ask(ada, "Lost?"))
            await upstream.asked()
            await kill(one)
            with pytest.raises(httpx.TransportError):
                await asking
            assert (await survivor.ask(ada, "Who is left?")).status_code == 201
            assert [status for status, *_ in await stored(url)] == [
                "pending",
                "answered",
            ]
            if not is_soak:
                await let_deadlines_pass(url)
            # 20 seconds and their jitter, beyond the 30 that may follow the model's 2.
            lost, answered = await all_ended(url, seconds=62 if is_soak else 30)
            assert (lost, answered[0]) == (LOST, "answered")
    assert other.log.count("questions.interrupted") == 1


async def leave_pending(
    url: str, who: Account, count: int, deadline: str, asked_ago: str = "0 hours"
) -> None:
    """Questions whose server is no more; `deadline` is a literal."""
    ago = f"now() - interval '{asked_ago}'"
    if url.startswith("sqlite"):
        ago = f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{asked_ago}')"
    statement = text(
        "INSERT INTO questions"
        " (user_id, content, idempotency_key, deadline_at, asked_at)"
        f" VALUES (:user, 'Why?', :key, {deadline}, {ago})"
    )
    rows = [{"user": who.id, "key": uuid.uuid4().hex} for _ in range(count)]
    async with connected(url) as database, database.transaction() as session:
        await session.execute(statement, rows)


NEVER, LONG_AGO = "'2999-01-01 00:00:00.000000'", "'2001-01-01 00:00:00.000000'"


@pytest.mark.slow
async def test_A02_a_start_on_sqlite_ends_all_that_is_pending_before_it_serves(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url)
    async with served(file) as (_, api):
        ada = await api.account()
    await leave_pending(url, ada, 1_201, NEVER)
    await leave_pending(url, ada, 1, "NULL")
    async with served(file):
        assert await stored(url) == [LOST] * 1_202


@pytest.mark.slow
async def test_F04_A02_a_start_on_postgresql_ends_what_is_overdue_and_no_more(
    databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)
    async with served(file) as (_, api), upstream.stalled() as release:
        ada = await api.account()
        asking = asyncio.create_task(api.ask(ada, "Still there?"))
        await upstream.asked()
        await leave_pending(url, ada, 1, "NULL", asked_ago="1 hours")
        await leave_pending(url, ada, 1_201, LONG_AGO)
        # Of an older release, which set none.
        await leave_pending(url, ada, 1, "NULL", asked_ago="3 hours")
        async with served(file), asyncio.timeout(60):
            while (rows := await stored(url)).count(LOST) < 1_202:
                await asyncio.sleep(0.05)
        assert [row for row in rows if row != LOST] == [("pending", None, None)] * 2
        release.set()
        assert (await asking).status_code == 201


# A3: what has come to an end never changes.


async def test_A03_an_answer_to_a_question_that_is_over_is_discarded(
    service: Running,
    api: Api,
    ada: Account,
    upstream: Upstream,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with upstream.stalled() as release:
        asking = asyncio.create_task(api.ask(ada, "Why?"))
        await upstream.asked()
        await let_deadlines_pass(database_url)
        await service.service(Upkeep).interrupt_overdue()
        before = await all_rows(database_url)
        (newest,) = await api.newest(ada)
        assert newest["error_code"] == "owner_lost"
        release.set()
        problem = assert_problem(await asking, 503, "owner_lost")
        assert problem["question_id"] == newest["id"]
    assert await all_rows(database_url) == before
    told = [record.msg for record in caplog.records]
    assert told.count("question.answered_too_late") == 1


async def test_A03_whoever_reads_a_stream_is_told_that_it_came_too_late(
    service: Running, api: Api, ada: Account, upstream: Upstream, database_url: str
) -> None:
    release = asyncio.Event()

    async def pauses(wire: Wire, received: Received) -> None:
        await wire.send(STREAM_HEAD, *map(framed, deltas("Half an ")))
        await release.wait()
        await wire.send(*map(framed, [*deltas("answer."), *ending()]), "0\r\n\r\n")

    async with upstream.behaving(pauses), api.reading(ada, "Why?") as reading:
        meta, _ = await reading.next(), await reading.next()
        await let_deadlines_pass(database_url)
        await service.service(Upkeep).interrupt_overdue()
        before = await all_rows(database_url)
        release.set()
        error = (await reading.rest())[-1]
        assert (error.name, error.data["code"]) == ("error", "owner_lost")
        assert error.data["question_id"] == meta.data["id"]
    assert await all_rows(database_url) == before


@pytest.mark.slow
async def test_A03_F04_a_server_that_was_frozen_too_long_discards_its_answer(
    databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)
    async with upstream.stalled() as release:
        with serving("--config", file) as server:
            async with client(server) as api:
                asking = asyncio.create_task(api.ask(await api.account(), "Why?"))
                await upstream.asked()
                frozen = psutil.Process(server.process.pid)
                frozen.suspend()
                try:
                    await let_deadlines_pass(url)
                    async with served(file):
                        assert await all_ended(url, seconds=10) == [LOST]
                    release.set()
                finally:
                    frozen.resume()
                assert_problem(await asking, 503, "owner_lost")
    assert await stored(url) == [LOST]
    assert "question.answered_too_late" in server.log


async def test_A03_of_an_answer_and_the_reaper_one_wins_and_both_tell_the_same(
    service: Running, api: Api, ada: Account, upstream: Upstream, database_url: str
) -> None:
    count, upkeep = 40, service.service(Upkeep)
    async with upstream.stalled() as release:
        asking = [
            asyncio.create_task(api.ask(ada, f"Number {n}?")) for n in range(count)
        ]
        await upstream.asked(count)
        await let_deadlines_pass(database_url)
        release.set()
        # One reaper after the other, from the first answer to the last.
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        while not all(task.done() for task in asking):
            await upkeep.interrupt_overdue()
    ends = {}
    for answer in await asyncio.gather(*asking):
        if answer.status_code == 201:
            ends[answer.json()["id"]] = "answered"
        else:
            problem = assert_problem(answer, 503, "owner_lost")
            ends[problem["question_id"]] = "interrupted"
    rows = await all_rows(database_url)
    assert ends == {row.id: row.status for row in rows if row.user_id == ada.id}
    assert len(ends) == count


async def test_A03_nobody_interrupts_what_was_answered(
    service: Running, api: Api, ada: Account, upstream: Upstream, database_url: str
) -> None:
    assert (await api.ask(ada, "Why?")).status_code == 201
    await execute(database_url, f"UPDATE questions SET deadline_at = {LONG_AGO}")
    before = await all_rows(database_url)
    await service.service(Upkeep).interrupt_overdue()
    await service.service(Upkeep).interrupt_all()
    assert await all_rows(database_url) == before


@pytest.mark.parametrize(
    "state",
    [
        "status = 'pending', answer = 'Half'",
        "status = 'pending', answered_at = asked_at",
        "status = 'pending', error_code = 'owner_lost'",
        "status = 'answered', answered_at = asked_at",
        "status = 'answered', answer = 'Whole'",
        "status = 'answered', answer = 'Whole', answered_at = asked_at,"
        " error_code = 'owner_lost'",
        "status = 'failed'",
        "status = 'failed', error_code = 'provider_failed', answered_at = asked_at",
        "status = 'interrupted'",
        "status = 'interrupted', error_code = 'owner_lost', answered_at = asked_at",
        "status = 'forgotten', error_code = 'owner_lost'",
        "status = NULL",
    ],
)
async def test_A03_the_database_refuses_a_state_that_cannot_be(
    service: Running, api: Api, ada: Account, database_url: str, state: str
) -> None:
    await leave_pending(database_url, ada, 1, NEVER)
    mine = f"UPDATE questions SET {{}} WHERE user_id = {ada.id}"
    with pytest.raises(IntegrityError):
        await execute(database_url, mine.format(state))
    # Nothing but the state is wrong with it.
    await execute(
        database_url, mine.format("status = 'failed', error_code = 'provider_failed'")
    )
