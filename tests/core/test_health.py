"""Alive and ready: what an orchestrator asks."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from core.db import Database
from core.health import Health
from core.testing import running
from tests.conftest import Databases, served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.postgres import Postgres

UNAVAILABLE = "database_unavailable"


async def test_a_healthy_service_is_live_and_ready(api: Api) -> None:
    live = await api.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "live"})
    ready = await api.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready"}


async def test_what_the_operator_should_know_is_for_administrators(
    api: Api, ada: Account, admin: Account
) -> None:
    for who, notes in (
        (None, None),
        (ada, None),
        (Account(7, "nobody", "no-token"), None),
        (admin, {"provider": "main, as configured"}),
    ):
        ready = await api.get("/health/ready", who)
        assert (ready.status_code, ready.json().get("notes")) == (200, notes)


async def test_probes_may_ask_for_the_head_only(api: Api) -> None:
    for path in ("/health/live", "/health/ready"):
        got, head = await api.get(path), await api.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
        assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.slow
async def test_a_database_that_hangs_makes_it_not_ready_within_about_a_second(
    tmp_path: Path, databases: Databases
) -> None:
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url)
    async with served(file) as (_, api):
        with databases.postgres.paused():
            started = time.monotonic()
            problem = assert_problem(await api.get("/health/ready"), 503, UNAVAILABLE)
            assert time.monotonic() - started < 8
            assert problem["detail"] == "The database cannot be reached at the moment."
            assert (await api.get("/health/live")).status_code == 200
        async with asyncio.timeout(60):
            while (await api.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.1)


async def test_F13_a_busy_service_is_ready(
    tmp_path: Path, databases: Databases, database_kind: str
) -> None:
    url = await databases.migrated(database_kind)
    limits = "pool_size = 1"
    file = write_config(tmp_path / "app.toml", url, database=limits)
    async with served(file) as (found, api):
        database = found.service(Database)
        async with AsyncExitStack() as held:
            sessions = [database.transaction()]
            # On PostgreSQL both take from one pool; SQLite has one for each.
            sessions += [database.reading()] if database_kind == "sqlite" else []
            for each in sessions:
                session = await held.enter_async_context(each)
                await session.execute(text("SELECT 1"))
            assert (await api.get("/health/ready")).status_code == 200


@pytest.mark.slow
async def test_a_database_that_is_gone_makes_it_not_ready_at_once(
    tmp_path: Path,
) -> None:
    postgres = Postgres()
    try:
        url = postgres.url(await postgres.create_database())
        limits = "migrate_on_start = true"
        file = write_config(tmp_path / "app.toml", url, database=limits)
        async with served(file, outlives_database=True) as (_, api):
            assert (await api.get("/health/ready")).status_code == 200
            await asyncio.to_thread(postgres.halt)
            started = time.monotonic()
            async with asyncio.timeout(60):
                while (await api.get("/health/ready")).status_code == 200:
                    await asyncio.sleep(0.1)
            problem = assert_problem(await api.get("/health/ready"), 503, UNAVAILABLE)
            assert time.monotonic() - started < 8
            assert str(postgres.port) not in str(problem)
            assert (await api.get("/health/live")).status_code == 200
    finally:
        postgres.stop()


async def test_a_service_that_is_told_to_end_is_not_ready(
    databases: Databases, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    async with running(file) as found, httpx.AsyncClient(base_url=found.url) as client:
        found.service(Health).draining = True
        assert_problem(await client.get("/health/ready"), 503, "shutting_down")
        assert (await client.get("/health/live")).status_code == 200


@pytest.mark.slow
async def test_a_database_that_cannot_be_written_to_is_told(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("postgresql")
    async with served(write_config(tmp_path / "app.toml", url)) as (found, api):
        assert (await api.get("/health/ready")).status_code == 200
        name = url.rpartition("/")[2]
        async with found.service(Database).work() as connection:
            change = f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'
            await connection.execute(text(change))
    # As a standby tells it, to every connection from now on.
    async with served(write_config(tmp_path / "app.toml", url)) as (_, api):
        problem = assert_problem(
            await api.get("/health/ready"), 503, "database_read_only"
        )
        assert name not in str(problem)
        assert (await api.get("/health/live")).status_code == 200
