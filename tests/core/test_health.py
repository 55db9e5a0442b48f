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
from core.migrate import downgrade, upgrade, version_table
from core.module import in_tree_names, load_modules
from core.settings import DatabaseSettings
from core.testing import running
from tests.conftest import Databases, served
from tests.support.api import Api, assert_problem
from tests.support.config import write_config
from tests.support.postgres import Postgres

MODULES = load_modules(in_tree_names())


async def test_a_healthy_service_is_live_and_ready(api: Api) -> None:
    live = await api.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "live"})
    ready = await api.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "notes": {"provider": "main, as configured"},
    }


async def test_a_service_whose_migrations_are_behind_is_live_but_not_ready(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("postgresql")
    database = Database(DatabaseSettings.model_validate({"url": url}))
    await downgrade(database, MODULES, "questions")
    async with served(write_config(tmp_path / "app.toml", url)) as (_, api):
        assert (await api.get("/health/live")).status_code == 200
        problem = assert_problem(await api.get("/health/ready"), 503, "not_ready")
        assert problem["detail"] == "Migrations are behind: run `migrate`."
        await upgrade(database, MODULES)
        async with asyncio.timeout(60):
            while (await api.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.1)
    await database.close()


async def test_F27_a_service_whose_database_became_newer_says_so(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("postgresql")
    async with served(write_config(tmp_path / "app.toml", url)) as (found, api):
        async with found.service(Database).transaction() as session:
            table = version_table(MODULES[0])
            await session.execute(text(f"UPDATE {table} SET version_num = '9999'"))
        problem = assert_problem(await api.get("/health/ready"), 503, "not_ready")
        assert "newer than this program" in problem["detail"]


@pytest.mark.slow
async def test_a_database_that_hangs_makes_it_not_ready_within_about_a_second(
    tmp_path: Path, databases: Databases
) -> None:
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url)
    async with served(file) as (_, api):
        with databases.postgres.paused():
            started = time.monotonic()
            problem = assert_problem(await api.get("/health/ready"), 503, "not_ready")
            assert time.monotonic() - started < 2
            assert problem["detail"] == "The database does not answer."
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
            problem = assert_problem(await api.get("/health/ready"), 503, "not_ready")
            assert time.monotonic() - started < 3
            assert problem["detail"] == "The database cannot be reached at the moment."
            assert (await api.get("/health/live")).status_code == 200
    finally:
        postgres.stop()


async def test_a_service_that_is_told_to_end_is_not_ready(
    databases: Databases, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    async with running(file) as found, httpx.AsyncClient(base_url=found.url) as client:
        found.service(Health).draining = True
        problem = assert_problem(await client.get("/health/ready"), 503, "not_ready")
        assert problem["detail"] == "The server is shutting down."
        assert (await client.get("/health/live")).status_code == 200
