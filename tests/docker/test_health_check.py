"""The image's health check, run beside a server by the Python of the tests."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.health import Health
from core.module import ROOT
from core.testing import Running, running
from tests.conftest import Databases
from tests.support.config import write_config


def health_check() -> list[str]:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    found = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)
    assert found
    python, *arguments = json.loads(found[1])
    assert python == "python"
    return [sys.executable, *arguments]


async def check(service: Running, **environ: str) -> subprocess.CompletedProcess[str]:
    address, _, port = service.url.removeprefix("http://").rpartition(":")
    return await asyncio.to_thread(
        subprocess.run,
        health_check(),
        env={
            "VOPROS_SERVER__HOST": address,
            "VOPROS_SERVER__PORT": port,
            # A proxy that is not there: it must not be asked.
            "http_proxy": "http://127.0.0.1:9",
            **environ,
        },
        capture_output=True,
        text=True,
    )


async def test_the_health_check_says_whether_the_service_is_ready(
    service: Running,
) -> None:
    ready = await check(service)
    assert (ready.returncode, ready.stdout, ready.stderr) == (0, "", "")
    health = service.service(Health)
    health.draining = True
    try:
        draining = await check(service)
    finally:
        health.draining = False
    assert draining.returncode == 1
    assert "shutting down" in draining.stderr
    nobody = await check(service, VOPROS_SERVER__PORT="9")
    assert nobody.returncode == 1
    assert "Connection refused" in nobody.stderr.splitlines()[-1]


@pytest.mark.parametrize("names", ["answers.example.org,b", '["answers.example.org"]'])
async def test_the_health_check_goes_by_a_name_that_the_server_answers_to(
    names: str, databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url)
    environ = {"VOPROS_SERVER__ALLOWED_HOSTS": names}
    async with running(file, environ) as service:
        health = service.service(Health)
        assert (await check(service, **environ)).returncode == 0
        health.draining = True
        assert (await check(service, **environ)).returncode == 1
        # It cannot know a name that only a file has. That the server answers is enough.
        assert (await check(service)).returncode == 0
