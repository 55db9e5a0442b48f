"""An event loop that is blocked: everybody waits, somebody tells, nothing dies."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from core.watchdog import watched_loop
from tests.conftest import Databases
from tests.support import packages
from tests.support.api import Api
from tests.support.config import write_config
from tests.support.process import serving

MODULE = """
    from core.module import Module

    MODULE = Module(name="blocks", router="blocks_plugin.router")
"""
ROUTER = """
    import time

    from fastapi import APIRouter

    router = APIRouter(prefix="/blocks", tags=["blocks"])


    @router.get("")
    async def block() -> str:
        time.sleep(1.2)
        return "done"
"""


def blocked(caplog: pytest.LogCaptureFixture) -> list[int]:
    found = (vars(r) for r in caplog.records if r.message == "loop.blocked")
    return [record["ms"] for record in found]


class LateClock:
    """Seconds that pass while somebody sleeps, and so much longer each time."""

    def __init__(self, *late_seconds: float) -> None:
        self._late = list(late_seconds)
        self._now = 0.0
        self.is_over = asyncio.Event()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if not self._late:
            self.is_over.set()
            await asyncio.Event().wait()
        self._now += seconds + self._late.pop(0)


@pytest.mark.parametrize(
    ("late_seconds", "told"),
    [
        ((0, 1, 0, 0), [1_000]),
        ((0.3, 0.49, 0.1), []),
        ((0.5, 0, 2.5), [500, 2_500]),
    ],
)
async def test_F42_a_blocked_loop_is_logged_once_with_how_long(
    caplog: pytest.LogCaptureFixture, late_seconds: tuple[float, ...], told: list[int]
) -> None:
    clock = LateClock(*late_seconds)
    async with watched_loop(clock.now, clock.sleep):
        await clock.is_over.wait()
    assert blocked(caplog) == told


@pytest.mark.slow
async def test_F42_a_server_that_was_blocked_lives_on_and_is_ready(
    databases: Databases, tmp_path: Path
) -> None:
    packages.install(
        tmp_path,
        "blocks",
        "1.0",
        entry_points="[vopros.modules]\nblocks = blocks_plugin:MODULE",
        files={"blocks_plugin/__init__.py": MODULE, "blocks_plugin/router.py": ROUTER},
    )
    file = write_config(
        tmp_path / "app.toml",
        await databases.migrated("sqlite"),
        modules='enabled = ["auth", "blocks"]',
        log='format = "json"',
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with serving("--config", file, env={"PYTHONPATH": path}) as server:
        api = Api(server.url)
        blocking = asyncio.create_task(api.get("/blocks"))
        answers = [await api.get("/health/live"), await blocking]
        assert [answer.status_code for answer in answers] == [200, 200]
        async with asyncio.timeout(60):
            while (await api.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.1)
            while "loop.blocked" not in server.log:
                await asyncio.sleep(0.02)
        assert server.process.poll() is None
        await api.close()
    lines = [json.loads(line) for line in server.log.splitlines() if "{" in line]
    assert any(x.get("event") == "loop.blocked" and x["ms"] >= 500 for x in lines)
