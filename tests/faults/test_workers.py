"""Several processes that serve: one may die, all end together, and none is left."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import Databases
from tests.faults.test_shutdown import outcomes
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.process import ServerProcess, assert_refused, serving, vopros
from tests.support.upstream import Upstream

TWO = "workers = 2\nshutdown_seconds = 1"
JSON_LOG = 'format = "json"'


@pytest.fixture
async def file(tmp_path: Path, databases: Databases, upstream: Upstream) -> Path:
    url = await databases.migrated("postgresql")
    return write_config(
        tmp_path / "app.toml", url, upstream.base_url, server=TWO, log=JSON_LOG
    )


async def two_workers(
    server: ServerProcess, *without: psutil.Process
) -> list[psutil.Process]:
    """Wait until there are two that serve, none of them among `without`."""
    async with asyncio.timeout(30):
        while True:
            found = psutil.Process(server.process.pid).children()
            if len(found) == 2 and not set(found) & set(without):
                break
            await asyncio.sleep(0.01)
    for other in found:
        with suspended(other):
            # A connection of its own: a kept one belongs to one worker.
            async with client(server) as api:
                assert (await api.get("/health/live")).status_code == 200
    return found


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@asynccontextmanager
async def client(server: ServerProcess) -> AsyncIterator[Api]:
    api = Api(server.url)
    yield api
    await api.close()


async def answered_by_each(
    server: ServerProcess, ada: Account, workers: list[psutil.Process]
) -> None:
    """Each of two can answer while the other cannot move."""
    for other in workers:
        with suspended(other):
            async with client(server) as api:
                answer = await api.ask(ada, "Who is there?")
                assert answer.status_code == 201, answer.text


def replacements(server: ServerProcess) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.splitlines()]
    return [line for line in lines if line["event"] == "worker.replaced"]


@pytest.mark.slow
async def test_F04_two_workers_answer_and_one_that_is_killed_is_replaced(
    file: Path,
) -> None:
    with serving("--config", file) as server:
        async with client(server) as api:
            ada = await api.account()
        workers = await two_workers(server)
        await answered_by_each(server, ada, workers)
        workers[0].kill()
        replaced = await two_workers(server, workers[0])
        assert workers[1] in replaced
        await answered_by_each(server, ada, replaced)
        # Soon after its start it is not replaced at once again.
        (second,) = set(replaced) - {workers[1]}
        second.kill()
        last = await two_workers(server, workers[0], second)
        assert await asyncio.to_thread(server.end) == 0, server.log
    told = [
        (r["worker"], r["exit_code"], r["pause_seconds"]) for r in replacements(server)
    ]
    assert told == [(workers[0].pid, -9, 0), (second.pid, -9, 1)]
    assert server.log.count("Swagger: ") == 1
    assert not any(process.is_running() for process in [*last, *replaced])


@pytest.mark.slow
async def test_a_child_that_is_no_worker_may_end(file: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with serving("--config", file, first=f"read line <'{pipe}'") as server:
        parent = psutil.Process(server.process.pid)
        (other,) = [c for c in parent.children() if c.name() == "sh"]
        pipe.write_text("end\n")
        await asyncio.to_thread(psutil.wait_procs, [other], timeout=60)
        async with client(server) as api:
            await api.account()
        assert len(await two_workers(server)) == 2
        assert await asyncio.to_thread(server.end) == 0, server.log
    assert replacements(server) == []


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["SIGTERM", "SIGTERM to all", "Ctrl-C"])
async def test_F05_all_workers_end_and_tell_whoever_waits(
    ending: str, file: Path, upstream: Upstream
) -> None:
    async with upstream.stalled():
        with serving("--config", file) as server:
            workers = await two_workers(server)
            async with client(server) as api, client(server) as other:
                ada = await api.account()
                asking = [
                    asyncio.create_task(found.ask(ada, "For long?"))
                    for found in (api, other)
                ]
                await upstream.asked(2)
                if ending == "Ctrl-C":
                    # As a terminal does it: to all that the shell has started.
                    os.killpg(server.process.pid, signal.SIGINT)
                else:
                    server.process.terminate()
                if ending == "SIGTERM to all":
                    # Again and again, also while they store what has become of all.
                    while any(worker.is_running() for worker in workers):
                        for worker in workers:
                            with contextlib.suppress(psutil.NoSuchProcess):
                                worker.terminate()
                        await asyncio.sleep(0.002)
                for answer in await asyncio.gather(*asking):
                    assert_problem(answer, 503, "server_shutdown")
            assert await asyncio.to_thread(server.ended) == 0, server.log
    assert not any(worker.is_running() for worker in workers)
    assert "Traceback" not in server.log
    assert "worker.ended" not in server.log
    assert await outcomes(file) == [("interrupted", "server_shutdown")] * 2


@pytest.mark.slow
async def test_nobody_is_kept_waiting_by_workers_that_end(
    file: Path, upstream: Upstream
) -> None:
    async with upstream.stalled() as release:
        with serving(
            "--config", file, env={"VOPROS_SERVER__SHUTDOWN_SECONDS": "20"}
        ) as server:
            async with client(server) as api:
                asking = asyncio.create_task(api.ask(await api.account(), "In time?"))
                await upstream.asked()
                server.process.terminate()
                async with asyncio.timeout(60), client(server) as late:
                    # Not let in, or let go of at once by the one that ends.
                    with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                        while True:
                            await late.http.get("/health/live")
                release.set()
                assert (await asking).status_code == 201
            assert await asyncio.to_thread(server.ended) == 0, server.log


@pytest.mark.slow
async def test_workers_do_not_outlive_a_parent_that_is_killed(
    file: Path,
) -> None:
    with serving("--config", file) as server:
        workers = await two_workers(server)
        async with client(server) as api:
            await api.account()
        server.process.kill()
        await asyncio.to_thread(server.ended)
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=60)
    assert not alive


@pytest.mark.slow
async def test_workers_migrate_an_empty_database_once(
    tmp_path: Path, databases: Databases
) -> None:
    file = write_config(
        tmp_path / "app.toml",
        await databases.empty("postgresql"),
        server=TWO,
        log=JSON_LOG,
        database="migrate_on_start = true",
    )
    with serving("--config", file) as server:
        workers = await two_workers(server)
        for other in workers:
            with suspended(other):
                async with client(server) as api:
                    await api.account()
        assert await asyncio.to_thread(server.end) == 0, server.log
    assert server.log.count("database.migrated") == 1


@pytest.mark.slow
async def test_what_refuses_the_start_is_told_once_with_the_same_code(
    tmp_path: Path, databases: Databases
) -> None:
    url = f"{await databases.empty('postgresql')}_that_is_not_there"
    file = write_config(tmp_path / "app.toml", url)
    refused = [
        vopros("--config", file, "serve", "--port", "0", env={WORKERS: workers})
        for workers in ("1", "3")
    ]
    for done in refused:
        assert_refused(done, "there is no such database", code=1)
    assert refused[0].stderr == refused[1].stderr


WORKERS = "VOPROS_SERVER__WORKERS"
ANY_POSTGRES = "postgresql+asyncpg://nobody@127.0.0.1:9/none"
SEVERAL = {WORKERS: "2"}


@pytest.mark.slow
def test_F22_several_workers_on_one_sqlite_file_are_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/vopros.db"
    file = write_config(tmp_path / "app.toml", url)
    told = "[server] workers: must be 1 with SQLite"
    for command in (["serve", "--port", "0"], ["config", "check"]):
        assert_refused(
            vopros("--config", file, *command, env=SEVERAL), told, WORKERS, code=78
        )
    assert not (tmp_path / "vopros.db").exists()


@pytest.mark.parametrize("key", ["PROVIDER", "FALLBACK"])
def test_several_workers_are_refused_with_a_provider_for_one(
    key: str, tmp_path: Path
) -> None:
    here = 'type = "local"'
    file = write_config(tmp_path / "app.toml", ANY_POSTGRES, providers__here=here)
    env = SEVERAL | {f"VOPROS_LLM__{key}": "here"}
    done = vopros("--config", file, "serve", "--port", "0", env=env)
    told = "[server] workers: must be 1 with provider 'here'"
    assert_refused(done, told, WORKERS, code=78)


@pytest.mark.slow
async def test_auto_passes_over_a_provider_for_one_process_and_says_why(
    file: Path,
) -> None:
    text = file.read_text().replace(
        'provider = "main"',
        'provider = "auto"\nauto = ["here", "echo"]\nallow_demo = true',
    )
    file.write_text(
        f'{text}\n[providers.here]\ntype = "local"\n[providers.echo]\ntype = "echo"\n'
    )
    with serving("--config", file) as server:
        assert await asyncio.to_thread(server.end) == 0, server.log
    assert "provider: echo" in server.log
    assert "here: for one process, and server.workers asks for more" in server.log
