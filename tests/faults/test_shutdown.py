"""A server that is told to end: nobody is left waiting, no question stays pending."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from core.db import Database
from core.settings import DatabaseSettings, load_settings
from core.testing import running
from providers.failover import FailoverChat
from tests.conftest import connected
from tests.support.api import PASSWORD, Api, assert_problem
from tests.support.config import write_config
from tests.support.process import serving
from tests.support.upstream import (
    KEY,
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    deltas,
    framed,
)


async def outcomes(file: Path) -> list[tuple[str, str | None]]:
    """How the questions of a service that has ended have ended."""
    database = Database(load_settings(file, {}).section(DatabaseSettings))
    try:
        async with database.reading() as session:
            statement = text("SELECT status, error_code FROM questions ORDER BY id")
            return [
                (row.status, row.error_code) for row in await session.execute(statement)
            ]
    finally:
        await database.close()


async def configured(
    folder: Path, databases: Any, database_kind: str, upstream: Upstream, seconds: int
) -> Path:
    return write_config(
        folder / "app.toml",
        await databases.migrated(database_kind),
        upstream.base_url,
        server=f"shutdown_seconds = {seconds}",
    )


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGINT"], ["SIGINT", "SIGINT"]])
async def test_F05_A14_questions_that_cannot_be_waited_for_are_told_and_stored(
    tmp_path: Path,
    databases: Any,
    database_kind: str,
    upstream: Upstream,
    signals: list[str],
) -> None:
    file = await configured(tmp_path, databases, database_kind, upstream, seconds=1)
    async with upstream.stalled():
        with serving("--config", file) as child:
            api = Api(child.url)
            ada = await api.account()
            asking = [
                asyncio.create_task(api.ask(ada, f"Number {n}?")) for n in range(3)
            ]
            await upstream.asked(3)
            for name in signals:
                child.process.send_signal(signal.Signals[name])
                await asyncio.sleep(0.2 * (len(signals) - 1))
            for answer in await asyncio.gather(*asking):
                problem = assert_problem(answer, 503, "server_shutdown")
                assert problem["question_id"] in {1, 2, 3}
            await api.close()
            assert await asyncio.to_thread(child.ended) == 0, child.log
    assert "Traceback" not in child.log
    assert await outcomes(file) == [("interrupted", "server_shutdown")] * 3


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGINT", "SIGINT"]])
async def test_F05_whoever_reads_a_stream_is_told_that_the_server_ends(
    tmp_path: Path,
    databases: Any,
    database_kind: str,
    upstream: Upstream,
    signals: list[str],
) -> None:
    """By the status while that is held back, and by an event once it is not."""
    file = await configured(tmp_path, databases, database_kind, upstream, seconds=1)

    async def say_no_more(wire: Wire, received: Received) -> None:
        if received.question == "Half?":
            await wire.send(STREAM_HEAD, *map(framed, deltas("Half an ")))
        await wire.closed_by_client()

    async with upstream.behaving(say_no_more):
        with serving("--config", file) as child:
            api = Api(child.url)
            ada = await api.account()
            async with api.reading(ada, "Half?") as reading:
                meta, half = await reading.next(), await reading.next()
                body = {"content": "None?"}
                held_back = asyncio.create_task(
                    api.http.post("/questions/stream", json=body, headers=ada.auth)
                )
                await upstream.asked(2)
                for name in signals:
                    child.process.send_signal(signal.Signals[name])
                    await asyncio.sleep(0.2 * (len(signals) - 1))
                (error,) = await reading.rest()
            assert (meta.data["id"], half.data["text"]) == (1, "Half an ")
            assert (error.name, error.data["code"]) == ("error", "server_shutdown")
            assert error.data["question_id"] == 1
            problem = assert_problem(await held_back, 503, "server_shutdown")
            assert problem["question_id"] == 2
            await api.close()
            assert await asyncio.to_thread(child.ended) == 0, child.log
    assert "Traceback" not in child.log
    assert "never retrieved" not in child.log
    assert await outcomes(file) == [("interrupted", "server_shutdown")] * 2


@pytest.mark.slow
async def test_F05_ctrl_c_lets_the_local_model_finish_its_answer(
    tmp_path: Path, databases: Any
) -> None:
    url = await databases.migrated("sqlite")
    # However slow the machine is, the model may finish.
    file = write_config(
        tmp_path / "app.toml",
        url,
        providers__here='type = "local"',
        server="shutdown_seconds = 300",
        llm="deadline_seconds = 300",
    )
    environ = {"VOPROS_LLM__PROVIDER": "here"}
    with serving("--config", file, env=environ) as child:
        api = Api(child.url)
        ada = await api.account()
        asking = asyncio.create_task(api.ask(ada, "Tell me a long story."))
        while not await api.newest(ada):
            await asyncio.sleep(0.01)
        # As a terminal does it: to all that the shell has started.
        os.killpg(child.process.pid, signal.SIGINT)
        assert (await asking).status_code == 201, child.log
        await api.close()
        assert await asyncio.to_thread(child.ended) == 0, child.log


async def test_A17_who_is_cut_off_by_the_end_is_told_of_without_a_secret(
    tmp_path: Path, databases: Any
) -> None:
    """They have tokens and passwords in hand: a traceback must show neither."""
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url, server="shutdown_seconds = 0")
    stuck = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with serving("--config", file) as child:
        api = Api(child.url)
        ada = await api.account()
        async with connected(url) as database, database.transaction() as session:
            await session.execute(text("LOCK TABLE auth_sessions"))
            asking = [
                asyncio.create_task(api.get("/users/me", ada)),
                asyncio.create_task(api.log_in(ada.username)),
            ]
            while await session.scalar(stuck) != len(asking):
                await asyncio.sleep(0.01)
                # Else the transaction sees again what it has seen.
                await session.execute(text("SELECT pg_stat_clear_snapshot()"))
            child.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(child.ended) == 0, child.log
        await asyncio.gather(*asking, return_exceptions=True)
        await api.close()
    assert child.log.count("Traceback (most recent call last)") == len(asking)
    assert PASSWORD not in child.log
    assert ada.token[:20] not in child.log


@pytest.mark.slow
async def test_F05_a_short_question_is_answered_before_the_end(
    tmp_path: Path, databases: Any, database_kind: str, upstream: Upstream
) -> None:
    file = await configured(tmp_path, databases, database_kind, upstream, seconds=20)
    async with upstream.stalled() as release:
        with serving("--config", file) as child:
            api = Api(child.url)
            asking = asyncio.create_task(api.ask(await api.account(), "In time?"))
            await upstream.asked()
            child.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            release.set()
            assert (await asking).status_code == 201
            await api.close()
            assert await asyncio.to_thread(child.ended) == 0, child.log
    assert await outcomes(file) == [("answered", None)]


async def test_F05_an_application_that_closes_tells_whoever_waits(
    tmp_path: Path, databases: Any, database_kind: str, upstream: Upstream
) -> None:
    file = await configured(tmp_path, databases, database_kind, upstream, seconds=0)
    async with upstream.stalled():
        async with running(file) as found:
            api = Api(found.url)
            asking = asyncio.create_task(api.ask(await api.account(), "For long?"))
            await upstream.asked()
        assert_problem(await asking, 503, "server_shutdown")
        await api.close()
    assert await outcomes(file) == [("interrupted", "server_shutdown")]


async def let_in_nobody(api: Api) -> None:
    """Until nobody new is let in; whoever comes before that is answered as ever."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with httpx.AsyncClient(trust_env=False, verify=False) as new:
                    await new.get(f"{api.url}/health/live")
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                return


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_F07_F06_nobody_new_is_kept_waiting_while_the_last_are_answered(
    tmp_path: Path, databases: Any, upstream: Upstream, workers: int
) -> None:
    """Nor are those cut off because it is told twice, as by a parent and a group."""
    file = write_config(
        tmp_path / "app.toml",
        await databases.migrated("postgresql"),
        upstream.base_url,
        server=f"shutdown_seconds = 20\nworkers = {workers}",
    )
    async with upstream.stalled() as release:
        with serving("--config", file) as child:
            api, idle = Api(child.url), Api(child.url)
            asking = asyncio.create_task(api.ask(await api.account(), "In time?"))
            await upstream.asked()
            # A connection that is kept and has nothing to do.
            await idle.get("/health/live")
            child.process.terminate()
            await let_in_nobody(api)
            child.process.terminate()
            async with asyncio.timeout(60):
                with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                    await idle.get("/health/live")
            assert not asking.done()
            release.set()
            assert (await asking).status_code == 201
            await api.close()
            await idle.close()
            assert await asyncio.to_thread(child.ended) == 0, child.log
    assert await outcomes(file) == [("answered", None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "first"), [("sqlite", "SIGINT"), ("postgresql", "SIGTERM")]
)
async def test_F06_whoever_will_not_wait_is_not_kept_and_all_is_stored(
    tmp_path: Path, databases: Any, upstream: Upstream, kind: str, first: str
) -> None:
    file = await configured(tmp_path, databases, kind, upstream, seconds=600)
    async with upstream.stalled():
        with serving("--config", file) as child:
            api = Api(child.url)
            asking = asyncio.create_task(api.ask(await api.account(), "For long?"))
            await upstream.asked()
            child.process.send_signal(signal.Signals[first])
            await let_in_nobody(api)
            child.process.send_signal(signal.SIGINT)
            assert_problem(await asking, 503, "server_shutdown")
            await api.close()
            assert await asyncio.to_thread(child.ended) == 0, child.log
    assert await outcomes(file) == [("interrupted", "server_shutdown")]


LOCKS = {
    "sqlite": "SELECT 1",  # its BEGIN IMMEDIATE is enough
    "postgresql": "LOCK TABLE questions IN ACCESS EXCLUSIVE MODE",
}


async def test_F05_an_answer_that_is_being_stored_is_stored_before_the_end(
    tmp_path: Path, databases: Any, database_kind: str, upstream: Upstream
) -> None:
    """Whoever asked is not waited for any more, but what came was paid for."""
    file = await configured(tmp_path, databases, database_kind, upstream, seconds=0)
    own = Database(load_settings(file, {}).section(DatabaseSettings))
    service = AsyncExitStack()
    async with upstream.stalled() as release:
        found = await service.enter_async_context(running(file))
        api = Api(found.url)
        asking = asyncio.create_task(api.ask(await api.account(), "In time?"))
        await upstream.asked()
        async with own.migrating() as connection:
            await connection.execute(text(LOCKS[database_kind]))
            release.set()
            (backend,) = found.service(FailoverChat).backends
            while backend.bulkhead.in_flight:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            closing = asyncio.create_task(service.aclose())
            await asyncio.wait({asking})
            _, still_closing = await asyncio.wait({closing}, timeout=0.3)
            await connection.rollback()
            assert still_closing
        await closing
    await api.close()
    await own.close()
    await asyncio.gather(asking, return_exceptions=True)
    assert await outcomes(file) == [("answered", None)]


@pytest.mark.slow
async def test_F06_what_could_not_be_stored_before_the_end_is_interrupted_at_the_next(
    tmp_path: Path, databases: Any, database_kind: str, upstream: Upstream
) -> None:
    """Told to end again and again while it waits for a database that is locked."""
    file = await configured(tmp_path, databases, database_kind, upstream, seconds=600)
    own = Database(load_settings(file, {}).section(DatabaseSettings))
    async with upstream.stalled():
        with serving("--config", file) as child:
            api = Api(child.url)
            ada = await api.account()
            asking = asyncio.create_task(api.ask(ada, "For long?"))
            await upstream.asked()
            async with own.migrating() as connection:
                await connection.execute(text(LOCKS[database_kind]))
                child.process.terminate()
                async with asyncio.timeout(30):
                    while child.process.poll() is None:
                        await asyncio.sleep(0.3)
                        child.process.send_signal(signal.SIGINT)
                await connection.rollback()
            await asyncio.gather(asking, return_exceptions=True)
            await api.close()
            child.ended()
    for secret in (PASSWORD, ada.token[:20], KEY):
        assert secret not in child.log
    assert await outcomes(file) == [("pending", None)]
    async with own.transaction() as session:
        await session.execute(text("UPDATE questions SET deadline_at = asked_at"))
    async with running(file):
        async with asyncio.timeout(60):
            while await outcomes(file) == [("pending", None)]:
                await asyncio.sleep(0.05)
    await own.close()
    assert await outcomes(file) == [("interrupted", "owner_lost")]
