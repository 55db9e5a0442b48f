"""Do docker-compose.yml, the Dockerfile and the service agree?

The image is built and run by `make docker-check`.
"""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from core.health import Health
from core.module import ROOT
from core.settings import DatabaseSettings, ServerSettings, Settings, load_settings
from core.testing import Running, running
from modules.auth.settings import AuthSettings
from providers.settings import LlmSettings
from tests.conftest import Databases
from tests.docker.compose import Compose, dockerfile, image_environment
from tests.support.config import SECRET, write_config

OURS = ("secrets", "migrate", "api")


def settings_of(
    service: str, folder: Path, outside: Mapping[str, str] | None = None
) -> Settings:
    """The settings as the service would load them, its secrets in `folder`."""
    compose = Compose(outside)
    environ = image_environment() | compose.environment(service)
    for mount in compose.mounts(service):
        for name, value in environ.items():
            if value.startswith(f"{mount.target}/"):
                path = folder / value.removeprefix(f"{mount.target}/")
                path.write_text(f"{SECRET}\n", encoding="ascii")
                environ[name] = str(path)
    return load_settings(None, environ)


@pytest.mark.parametrize("service", ["migrate", "api"])
@pytest.mark.parametrize("outside", [{}, {"OPENAI_API_KEY": ""}])
def test_the_service_accepts_the_environment_of_compose(
    service: str, outside: dict[str, str], tmp_path: Path
) -> None:
    settings = settings_of(service, tmp_path, outside)
    database = settings.section(DatabaseSettings)
    assert database.password and database.password.get_secret_value() == SECRET
    secret = settings.section(AuthSettings).secret
    assert secret and secret.get_secret_value() == SECRET
    assert settings.section(LlmSettings).allow_demo
    assert settings.section(ServerSettings).host == "0.0.0.0"
    assert settings.section(ServerSettings).allowed_hosts == ("localhost", "127.0.0.1")


def test_the_example_of_env_is_accepted_with_every_line_in_use(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    outside = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert all(re.search(rf"\b{name}\b", compose) for name in outside)
    settings = settings_of("api", tmp_path, outside)
    assert settings.section(LlmSettings).provider == outside["VOPROS_LLM__PROVIDER"]
    allowed = settings.section(ServerSettings).allowed_hosts
    assert allowed == (outside["VOPROS_SERVER__ALLOWED_HOSTS"],)
    openai = settings.raw.tables["providers"]["openai"]
    assert openai["model"] == outside["VOPROS_PROVIDERS__OPENAI__MODEL"]


def test_one_word_outside_switches_the_provider(tmp_path: Path) -> None:
    outside = {"VOPROS_LLM__PROVIDER": "openai", "OPENAI_API_KEY": "a-key"}
    settings = settings_of("api", tmp_path, outside)
    assert settings.section(LlmSettings).provider == "openai"


def test_the_services_start_in_an_order_that_works() -> None:
    services = Compose().services
    needs = {name: found.get("depends_on", {}) for name, found in services.items()}
    done, healthy = "service_completed_successfully", "service_healthy"
    assert needs["secrets"] == {}
    assert needs["db"] == {"secrets": {"condition": done}}
    assert needs["migrate"] == {"db": {"condition": healthy}}
    assert needs["api"] == {"migrate": {"condition": done}}
    assert services["db"]["healthcheck"]["test"][0] == "CMD"


def test_nothing_can_be_reached_from_another_machine() -> None:
    services = Compose().services
    published = {name: found.get("ports", []) for name, found in services.items()}
    assert published.pop("api") == ["127.0.0.1:8000:8000"]
    assert not any(published.values())


@pytest.mark.parametrize("service", OURS)
def test_our_containers_can_do_as_little_as_possible(service: str) -> None:
    found = Compose().services[service]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"^USER 10001:10001$", dockerfile(), re.MULTILINE)
    assert all(
        m.is_read_only or service == "secrets" for m in Compose().mounts(service)
    )


def test_every_reader_reads_a_secret_that_the_one_shot_makes() -> None:
    compose = Compose()
    made = set(compose.services["secrets"]["command"][2:])
    (written,) = compose.mounts("secrets")
    for service in ("db", "migrate", "api"):
        assert (written.volume, written.target) in [
            (mount.volume, mount.target) for mount in compose.mounts(service)
        ]
        environ = compose.environment(service)
        files = {value for name, value in environ.items() if name.endswith("_FILE")}
        assert files and files <= made
        # A password in the environment would be seen by whoever inspects a container.
        assert not {"POSTGRES_PASSWORD", "VOPROS_DATABASE__PASSWORD"} & environ.keys()


def test_stopping_waits_for_what_is_under_way(tmp_path: Path) -> None:
    grace = Compose().services["api"]["stop_grace_period"]
    server = settings_of("api", tmp_path).section(ServerSettings)
    assert int(grace.removesuffix("s")) > server.shutdown_seconds


def test_the_image_holds_what_the_service_needs_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert let_in == {
        *packages,
        *("migrations", "config", "pyproject.toml", project["project"]["readme"]),
        *("requirements.lock", "requirements-local.lock"),
    }
    assert "*" in lines


def healthcheck() -> list[str]:
    """The health check's command, to be run by the Python of the tests."""
    found = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile(), re.MULTILINE)
    assert found
    python, *arguments = json.loads(found[1])
    assert python == "python"
    return [sys.executable, *arguments]


async def probe(service: Running, **environ: str) -> subprocess.CompletedProcess[str]:
    port = service.url.rpartition(":")[2]
    return await asyncio.to_thread(
        subprocess.run,
        healthcheck(),
        cwd=ROOT,
        # A proxy that is not there: a question about oneself must not go through it.
        env={
            "VOPROS_SERVER__PORT": port,
            "http_proxy": "http://127.0.0.1:9",
            **environ,
        },
        capture_output=True,
        text=True,
    )


async def test_the_health_check_says_whether_the_service_is_ready(
    service: Running,
) -> None:
    ready = await probe(service)
    assert (ready.returncode, ready.stdout, ready.stderr) == (0, "", "")
    health = service.service(Health)
    health.draining = True
    try:
        draining = await probe(service)
    finally:
        health.draining = False
    assert draining.returncode == 1
    assert "shutting down" in draining.stderr
    nobody = await probe(service, VOPROS_SERVER__PORT="9")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("no answer: ")


@pytest.mark.parametrize("names", ["answers.example.org,b", '["answers.example.org"]'])
async def test_the_health_check_goes_by_a_name_that_the_server_answers_to(
    names: str, databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url)
    environ = {"VOPROS_SERVER__ALLOWED_HOSTS": names}
    async with running(file, environ) as service:
        assert (await probe(service, **environ)).returncode == 0
        assert (await probe(service)).returncode == 1
