"""Plays docker-compose.yml with a built image and a real PostgreSQL, without an engine.

Usage: python -m tests.docker.stack ROOT IMAGE_JSON PROVIDER, as root in network, mount
and process namespaces of its own: ROOT is where the image is mounted, IMAGE_JSON what
`buildah inspect` says of it, PROVIDER who has to answer. `check` beside this calls it.

A service gets what the file gives it: environment, command, volumes, a read-only root,
no capability. Not played: the engine itself with its networks, restarts and init.
"""

import json
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from core.module import ROOT
from tests.docker.compose import Compose
from tests.support.postgres import binaries

UID = 10001
QUESTION = "What is the capital of France? Answer in one sentence."
PASSWORD = "a horse, a battery, a staple"
START_SECONDS = 90.0


class Stack:
    """The services of the file, started one by one."""

    def __init__(self, root: Path, image: Mapping[str, Any], folder: Path) -> None:
        self.compose = Compose()
        self.folder = folder
        self._root = root
        self._image = image
        self._volumes: dict[str, Path] = {}
        # What the engine's own name server says.
        (root / "etc/hosts").write_text("127.0.0.1 localhost db\n", encoding="ascii")

    def start(
        self,
        service: str,
        command: list[str] | None = None,
        outside: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a service's container, or another command in one like it."""
        compose = Compose(outside)
        environ = dict(pair.split("=", 1) for pair in self._image["Env"])
        environ |= compose.environment(service)
        command = command or compose.services[service].get("command")
        inner = [
            *("chroot", self._root, "env", "-i", "-C", self._image["WorkingDir"]),
            *(f"{name}={value}" for name, value in environ.items()),
            *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
            *(command or self._image["Cmd"]),
        ]
        script = "\n".join(
            [
                "set -e",
                *self._mounts(compose, service),
                f"exec {shlex.join(str(word) for word in inner)}",
            ]
        )
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _mounts(self, compose: Compose, service: str) -> Iterator[str]:
        found = compose.services[service]
        root = shlex.quote(str(self._root))
        yield f"mount --bind {root} {root}"
        yield f"mount -t proc proc {root}/proc"
        yield f"mount --rbind /dev {root}/dev"
        for target in found.get("tmpfs", ()):
            yield f"mount -t tmpfs tmpfs {root}{target}"
        for mount in compose.mounts(service):
            source = self.volume(mount.volume, mount.target)
            yield f"mount --bind {source} {root}{mount.target}"
            if mount.is_read_only:
                yield f"mount -o remount,bind,ro {root}{mount.target}"
        if found["read_only"]:
            yield f"mount -o remount,bind,ro {root}"

    def volume(self, name: str, target: str) -> Path:
        """A named volume: owner and mode are those of the image's folder, if any."""
        if name not in self._volumes:
            volume = self.folder / name
            volume.mkdir()
            ours = self._root / target.removeprefix("/")
            if ours.is_dir():
                shutil.copystat(ours, volume)
                os.chown(volume, ours.stat().st_uid, ours.stat().st_gid)
            self._volumes[name] = volume
        return self._volumes[name]

    def run(
        self,
        service: str,
        command: list[str] | None = None,
        outside: Mapping[str, str] | None = None,
    ) -> str:
        """Run a service to its end, which must be good; returns what it printed."""
        code, said = self.ended(self.start(service, command, outside))
        assert code == 0, f"{service} ended with {code}:\n{said}"
        return said

    @staticmethod
    def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
        """The exit code, and what was printed."""
        said, _ = process.communicate(timeout=START_SECONDS)
        return process.returncode, said

    @contextmanager
    def database(self) -> Iterator[None]:
        """PostgreSQL as the image of `db` sets it up: with a password for all."""
        found = self.compose.services["db"]
        environ = self.compose.environment("db")
        (mount,) = [m for m in self.compose.mounts("db") if m.volume == "secrets"]
        name = environ["POSTGRES_PASSWORD_FILE"].removeprefix(f"{mount.target}/")
        data = self.volume("database", "/var/lib/postgresql/data")
        account = pwd.getpwnam("nobody")
        os.chown(data, account.pw_uid, account.pw_gid)
        # Root reads it, then becomes another user.
        given = self.folder / "given"
        shutil.copy(self.volume(mount.volume, mount.target) / name, given)
        os.chown(given, account.pw_uid, account.pw_gid)

        def run(program: str, *arguments: str, **more: Any) -> None:
            subprocess.run(
                [binaries() / program, *arguments],
                user=account.pw_uid,
                group=account.pw_gid,
                cwd="/",
                stdout=subprocess.DEVNULL,
                check=True,
                **more,
            )

        user = ("-U", environ["POSTGRES_USER"])
        run(
            "initdb", "-D", str(data), *user, f"--pwfile={given}", "-A", "scram-sha-256"
        )
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
        log = ("-l", str(data / "log"))
        run("pg_ctl", "-w", "-D", str(data), *log, "-o", options, "start")
        try:
            password = given.read_text(encoding="ascii").strip()
            password_known = {"env": os.environ | {"PGPASSWORD": password}}
            local = ("-h", "127.0.0.1", *user)
            run("createdb", *local, environ["POSTGRES_DB"], **password_known)
            _, program, *arguments = found["healthcheck"]["test"]
            run(program, *arguments)
            yield
        finally:
            run("pg_ctl", "-w", "-D", str(data), "-m", "fast", "stop")

    @contextmanager
    def api(self, outside: Mapping[str, str] | None = None) -> Iterator["Api"]:
        """The API, once the image's health check calls it healthy; stopped as told."""
        process = self.start("api", outside=outside)
        try:
            self._await_health(process, outside)
            yield Api(process, self)
            assert process.poll() is None, "the API ended by itself"
            process.send_signal(signal.Signals[self._image["StopSignal"]])
        except BaseException:
            process.kill()
            print(process.communicate()[0], file=sys.stderr)
            raise
        grace = self.compose.services["api"]["stop_grace_period"]
        said, _ = process.communicate(timeout=float(grace.removesuffix("s")))
        assert process.returncode == 0, f"stopped with {process.returncode}:\n{said}"
        for name in ("database.password", "signing.secret"):
            secret = (self._volumes["secrets"] / name).read_text(encoding="ascii")
            assert secret.strip() not in said

    def _await_health(
        self, process: subprocess.Popen[str], outside: Mapping[str, str] | None
    ) -> None:
        kind, *command = self._image["Healthcheck"]["Test"]
        assert kind == "CMD"
        deadline = time.monotonic() + START_SECONDS
        while True:
            code, said = self.ended(self.start("api", command, outside))
            if code == 0:
                return
            assert process.poll() is None, "the API did not start"
            assert time.monotonic() < deadline, f"not healthy in time: {said}"
            time.sleep(0.2)


class Api:
    """The running API, as a person beside it sees it."""

    def __init__(self, process: subprocess.Popen[str], stack: Stack) -> None:
        published = stack.compose.services["api"]["ports"][0]
        host, outer, inner = published.split(":")
        assert outer == inner, "ports are not mapped here"
        self.processes = [psutil.Process(process.pid)]
        self.processes += self.processes[0].children(recursive=True)
        self.http = httpx.Client(
            base_url=f"http://{host}:{outer}", timeout=60, trust_env=False
        )


def check_secrets(stack: Stack) -> None:
    """The one-shot makes both secrets, for their reader alone, and never anew."""
    print(stack.run("secrets"), end="")
    (mount,) = stack.compose.mounts("secrets")
    folder = stack.volume(mount.volume, mount.target)
    assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (UID, 0o700)
    made = {file.name: file.read_text(encoding="ascii") for file in folder.iterdir()}
    assert made.keys() == {"database.password", "signing.secret"}
    for file in folder.iterdir():
        assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (UID, 0o600)
    stack.run("secrets")
    assert made == {f.name: f.read_text(encoding="ascii") for f in folder.iterdir()}


def check_journey(api: Api, provider: str) -> None:
    """Register, authorize, ask, read the last three."""
    http = api.http
    account = {"username": "ada", "password": PASSWORD}
    assert http.post("/auth/register", json=account).status_code == 201
    form = {"grant_type": "password", **account}
    token = http.post("/auth/token", data=form).json()["access_token"]
    who = {"Authorization": f"Bearer {token}"}
    asked = http.post("/questions", json={"content": QUESTION}, headers=who)
    assert asked.status_code == 201, asked.text
    question = asked.json()
    print(f"{question['provider']} ({question['model']}): {question['answer']}")
    assert (question["status"], question["provider"]) == ("answered", provider)
    if provider == "local":
        # What it says is another thing every time.
        assert question["usage"]["completion_tokens"] > 0
    assert http.get("/questions/me", headers=who).json() == [question]
    assert http.get("/docs").status_code == 200
    foreign = http.get("/health/live", headers={"Host": "elsewhere.example"})
    assert foreign.status_code == 400


def check_privileges(api: Api) -> None:
    """No process is root or could become it."""
    for process in api.processes:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert status["Uid"].split() == [str(UID)] * 4, process
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, process
        assert status["NoNewPrivs"] == "1", process


def check_contents(stack: Stack) -> None:
    """No compiler, no secret of the folder it was built in, nothing can be written."""
    look = "ls -A /app; echo --; command -v cc gcc make git curl; touch /app/new 2>&1"
    said = stack.run("api", ["sh", "-c", f"{look} || id -u"])
    files, _, rest = said.partition("--\n")
    context = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in files.split()} == {n for n in context if n[0] == "!"}
    refused = "touch: cannot touch '/app/new': Read-only file system"
    assert rest.splitlines() == [refused, str(UID)]


def check_switching(stack: Stack) -> None:
    """One word outside the containers changes who answers."""
    outside = {"VOPROS_LLM__PROVIDER": "echo"}
    with stack.api(outside) as api:
        notes = api.http.get("/health/ready").json()["notes"]
        assert notes["provider"].startswith("echo (")
        assert notes["provider"].endswith(", as configured")
    keyed = stack.run(
        "api",
        ["vopros", "config", "check"],
        {"VOPROS_LLM__PROVIDER": "openai", "OPENAI_API_KEY": "a-key"},
    )
    assert "nothing wrong" in keyed


def main() -> None:
    """Play everything in the order that the file gives."""
    root, image_json, provider = sys.argv[1:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    image = json.loads(Path(image_json).read_text(encoding="utf-8"))["Docker"]
    with tempfile.TemporaryDirectory(prefix="stack-", dir="/var/tmp") as folder:
        # Reached by those who become another user, too.
        os.chmod(folder, 0o755)
        stack = Stack(Path(root), image["config"], Path(folder))
        check_contents(stack)
        check_secrets(stack)
        with stack.database():
            print(stack.run("migrate"), end="")
            assert stack.run("migrate") == "nothing to migrate\n"
            with stack.api() as api:
                check_journey(api, provider)
                check_privileges(api)
                children = api.processes
            assert not any(process.is_running() for process in children)
            check_switching(stack)


if __name__ == "__main__":
    main()
