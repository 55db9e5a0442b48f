"""A Docker engine for the tests: the one that can be reached, else one thrown away."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from core.module import ROOT
from tests.docker.stand_in import StandInFailed, make_stand_ins

_START_SECONDS = 60
# What configures the service or compose; the tests say it themselves.
_OURS = re.compile(r"VOPROS_|OPENAI_API_KEY$|WITH_LOCAL_MODEL$|COMPOSE_")
_PROGRAMS = ("docker", "dockerd", "docker-compose", "iptables", "debootstrap")
# The machine's own engine may be configured there; this one also writes there.
_HIDE_CONFIGURATION = (
    'mkdir -p /etc/docker && mount -t tmpfs tmpfs /etc/docker && exec "$0" "$@"'
)


class NoEngine(Exception):
    """No Docker engine can be had; the message is one line."""


@dataclass(frozen=True)
class Engine:
    """A running engine, and the environment in which its clients find it."""

    environ: Mapping[str, str]
    # Where a build finds its package indexes; None is the engine's own choice.
    build_network: str | None = None

    def docker(self, *arguments: str) -> str:
        """Run `docker` to its end, which must be good; return what it printed."""
        return self.run("docker", *arguments).stdout

    def run(
        self, *command: str, cwd: Path = ROOT, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a client of the engine to its end."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environ, capture_output=True, text=True
        )
        if check and done.returncode:
            said = done.stdout[-4000:] + done.stderr[-4000:]
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{said}")
        return done


def base_images() -> tuple[str, str]:
    """The images of Python and PostgreSQL that the project's files name."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (python,) = set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return python, compose["services"]["db"]["image"]


@contextmanager
def running_engine(say: Callable[[str], None]) -> Iterator[Engine]:
    """Yield an engine that has the base images, and `say` which it is.

    Raises NoEngine with the cause.
    """
    environ = {k: v for k, v in os.environ.items() if not _OURS.match(k)}
    yours = Engine(environ)
    if _is_reachable(yours) and _has(yours, base_images()):
        say("The Docker engine that is running here is used.")
        yield yours
        return
    with _engine_of_its_own(environ, say) as engine:
        yield engine


def _is_reachable(engine: Engine) -> bool:
    with suppress(FileNotFoundError):
        return engine.run("docker", "info", check=False).returncode == 0
    return False


def _has(engine: Engine, images: tuple[str, ...]) -> bool:
    """Whether the engine has the images, or can pull them."""
    return all(
        engine.run("docker", "image", "inspect", image, check=False).returncode == 0
        or engine.run("docker", "pull", image, check=False).returncode == 0
        for image in images
    )


@contextmanager
def _engine_of_its_own(
    environ: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[Engine]:
    if os.geteuid() != 0:
        raise NoEngine(
            "no Docker engine with the base images can be reached (`docker info`,"
            " `docker pull`), and only root can start one"
        )
    if missing := [name for name in _PROGRAMS if not shutil.which(name)]:
        raise NoEngine(f"cannot start a Docker engine without {', '.join(missing)}")
    # Not /tmp: that may be memory.
    folder = Path(tempfile.mkdtemp(prefix="vopros-docker-", dir="/var/tmp"))
    try:
        socket = f"unix://{folder}/docker.sock"
        engine = Engine({**environ, "DOCKER_HOST": socket}, build_network="host")
        with _dockerd(engine, folder, socket):
            say("A Docker engine has been started for these tests only.")
            images = base_images()
            if not _has(engine, images):
                say("No registry can be reached. Debian packages are made into ...")
                for image in images:
                    say(f"... a stand-in for the image {image}")
                try:
                    make_stand_ins(engine.docker, *images, folder)
                except StandInFailed as exc:
                    raise NoEngine(f"no stand-in can be made: {exc}") from exc
            yield engine
    finally:
        shutil.rmtree(folder)


@contextmanager
def _dockerd(engine: Engine, folder: Path, socket: str) -> Iterator[None]:
    log = folder / "dockerd.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                # Ends with this process, whatever becomes of it; its mounts with it.
                *("setpriv", "--pdeathsig", "TERM", "unshare", "--mount"),
                *("sh", "-c", _HIDE_CONFIGURATION, "dockerd"),
                # The machine's firewall and routes stay as they are: the containers
                # reach each other, and the host them, without.
                *("--bridge=none", "--iptables=false", "--ip-forward=false"),
                *("--ip-masq=false", f"--data-root={folder}/data"),
                *(f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"),
                f"--host={socket}",
            ],
            stdout=out,
            stderr=out,
            # A SIGINT of the terminal is not for it: there is something to clean up.
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _is_reachable(engine):
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoEngine(f"dockerd does not start: {_last_words(log)}")
            time.sleep(0.2)
        yield
    finally:
        # Networks that a test has left are interfaces of this machine.
        if process.poll() is None and _is_reachable(engine):
            if left := engine.docker("ps", "--all", "--quiet").split():
                engine.docker("rm", "--force", *left)
            engine.docker("network", "prune", "--force")
        process.send_signal(signal.SIGTERM)
        process.wait()


def _last_words(log: Path) -> str:
    """The line of the log that says what was wrong, without its decoration."""
    lines = log.read_text(errors="replace").splitlines() or ["(it said nothing)"]
    errors = [line for line in lines if "level=" not in line] or lines
    return errors[-1]
