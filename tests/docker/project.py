"""A clone of the project, as docker-compose runs it."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from core.module import ROOT
from tests.docker.engine import Engine

START_SECONDS = 120
CANARY = "canary-outside-8d2f"


def clone(folder: Path) -> Path:
    """A clone made under a strict umask, with secrets beside it; returns `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for outside in (".env.local", "var/signing.secret", "core/__pycache__/x.pyc"):
        (folder / outside).parent.mkdir(parents=True, exist_ok=True)
        (folder / outside).write_text(CANARY)
    subprocess.run(["chmod", "-R", "go=", folder], check=True)
    return folder


class Project:
    """The services of docker-compose.yml under names of their own."""

    def __init__(self, engine: Engine, folder: Path, name: str) -> None:
        self.engine = engine
        self.folder = folder
        self.name = name
        self.image = f"{name}:check"
        file = folder / "docker-compose.yml"
        found = yaml.safe_load((ROOT / file.name).read_text(encoding="utf-8"))
        for service in ("secrets", "migrate", "api"):
            found["services"][service]["image"] = self.image
            if engine.build_network:
                found["services"][service]["build"]["network"] = engine.build_network
        api = found["services"]["api"]
        assert api["ports"] == ["127.0.0.1:8000:8000"]
        # Another one may be in use here.
        api["ports"] = ["127.0.0.1::8000"]
        # The image's command, more often.
        api["healthcheck"] = {"interval": "1s", "retries": 2}
        file.write_text(yaml.safe_dump(found), encoding="utf-8")

    def write_env(self, text: str) -> None:
        (self.folder / ".env").write_bytes(text.encode())

    def command(self, *arguments: str) -> list[str]:
        program = (
            ["docker-compose"]
            if shutil.which("docker-compose")
            else ["docker", "compose"]
        )
        return [*program, "--project-name", self.name, *arguments]

    def compose(self, *arguments: str) -> str:
        """Run docker-compose to its end, which must be good; return what it printed."""
        return self.engine.run(*self.command(*arguments), cwd=self.folder).stdout

    def config(self) -> dict[str, Any]:
        """The file as docker-compose understands it."""
        found: dict[str, Any] = yaml.safe_load(self.compose("config"))
        return found

    def up(self) -> None:
        """Do what the README says, and wait until the API is healthy."""
        self.compose("up", "-d")
        self.await_health("healthy")

    def container(self, service: str) -> str:
        (found,) = self.compose("ps", "--all", "--quiet", service).split()
        return found

    def inspect(self, service: str) -> dict[str, Any]:
        said = self.engine.docker("inspect", self.container(service))
        (found,) = yaml.safe_load(said)
        return dict(found)

    def execute(self, script: str, **environ: str) -> str:
        """Run a shell script in the API's container."""
        options = [word for pair in environ.items() for word in ("-e", "=".join(pair))]
        found = self.container("api")
        return self.engine.docker("exec", *options, found, "sh", "-c", script)

    def await_health(self, status: str) -> None:
        def reached() -> bool:
            found = self.inspect("api")
            assert found["RestartCount"] == 0, self.compose("logs", "api")
            return bool(found["State"]["Health"]["Status"] == status)

        try:
            self.wait_until(reached, f"API {status}")
        except AssertionError:
            print(self.inspect("api")["State"], self.compose("logs", "api"))
            raise

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not reached():
            assert time.monotonic() < deadline, f"{what}: not in time"
            time.sleep(0.2)

    def client(self, host: str = "localhost") -> httpx.Client:
        """A client of the API on the port that is published, calling it `host`."""
        address = self.compose("port", "api", "8000").strip()
        return httpx.Client(
            base_url=f"http://{address}",
            headers={"Host": host},
            timeout=120,
            trust_env=False,
        )

    def leftovers(self) -> list[str]:
        """Containers, volumes and networks of the project."""
        mine = ("--filter", f"label=com.docker.compose.project={self.name}", "--quiet")
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [found for k in kinds for found in self.engine.docker(*k, *mine).split()]


@contextmanager
def project(engine: Engine, folder: Path, kind: str) -> Iterator[Project]:
    """A project that is gone at the end, with its image and all that it has stored."""
    made = Project(engine, clone(folder), f"vopros-check-{os.getpid()}-{kind}")
    try:
        yield made
    finally:
        made.compose("down", "--volumes", "--remove-orphans")
        engine.run("docker", "image", "rm", made.image, check=False)


def example_of_env() -> Mapping[str, str]:
    """The variables of .env.example, with every line in use."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    return dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, re.MULTILINE))
