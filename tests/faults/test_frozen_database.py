"""A database that says nothing any more, though its connections are open."""

import asyncio
from pathlib import Path

from tests.conftest import Databases, served
from tests.support.api import assert_problem
from tests.support.config import write_config


async def test_F11_a_database_that_is_frozen_is_503_and_holds_up_nobody_else(
    tmp_path: Path, databases: Databases
) -> None:
    file = write_config(
        tmp_path / "app.toml",
        await databases.migrated("postgresql"),
        database="command_seconds = 1.0\nconnect_seconds = 1.0",
    )
    async with served(file) as (_, api):
        ada = await api.account()
        with databases.postgres.paused():
            asking = asyncio.create_task(api.get("/users/me", ada))
            async with asyncio.timeout(10):
                assert (await api.get("/health/live")).status_code == 200
                problem = assert_problem(await asking, 503)
            assert problem["code"] in ("database_unavailable", "busy")
        assert (await api.get("/users/me", ada)).status_code == 200
