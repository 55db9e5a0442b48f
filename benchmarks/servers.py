"""Servers to measure, in processes of their own, on PostgreSQL as durable as it comes.

Whatever else is needed, the database and the clients above all, keeps to other cores.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.command_line import ROOT
from tests.support.config import SECRET
from tests.support.postgres import Postgres

_PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """One that listens."""

    url: str
    pid: int
    log: Path

    def cpu_seconds(self) -> float:
        """What all its threads have used so far, to the nanosecond (Linux)."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def forget_peak(self) -> int:
        """Count the peak of its memory from here on; how many bytes it has (Linux)."""
        forget_peak(self.pid)
        return psutil.Process(self.pid).memory_info().rss

    def peak_bytes(self) -> int:
        """The most memory it had since then."""
        return peak_bytes(self.pid)

    def keep_to(self, cores: Collection[int]) -> None:
        """Run on these cores only, every thread there is."""
        for thread in psutil.Process(self.pid).threads():
            os.sched_setaffinity(thread.id, cores)


@contextmanager
def core_apart() -> Iterator[set[int]]:
    """One core for the server; this process and all it starts keep to the others.

    Where there is only one, all share it.
    """
    everywhere = os.sched_getaffinity(0)
    core, *others = sorted(everywhere)
    os.sched_setaffinity(0, others or everywhere)
    try:
        yield {core}
    finally:
        os.sched_setaffinity(0, everywhere)


def forget_peak(pid: int) -> None:
    """Count the peak of a process's memory from here on (Linux)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most memory that a process had since then."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak")


@contextmanager
def postgresql() -> Iterator[Postgres]:
    """A server of databases."""
    postgres = Postgres(durable=True)
    try:
        yield postgres
    finally:
        postgres.stop()


@contextmanager
def database() -> Iterator[str]:
    """The URL of an empty database."""
    with postgresql() as postgres:
        yield new_database(postgres)


def new_database(postgres: Postgres) -> str:
    """The URL of one more empty database."""
    return postgres.url(asyncio.run(postgres.create_database()))


@contextmanager
def served(
    database_url: str, *, program: str = "core", **variables: str
) -> Iterator[Server]:
    """Serve with the configuration as shipped, but for these `VOPROS_` variables."""
    told = {
        "VOPROS_DATABASE__URL": database_url,
        "VOPROS_DATABASE__MIGRATE_ON_START": "true",
        "VOPROS_AUTH__SECRET": SECRET,
        "VOPROS_LLM__PROVIDER": "echo",
        **{f"VOPROS_{name.upper()}": value for name, value in variables.items()},
    }
    with tempfile.NamedTemporaryFile("w+") as log:
        command = [sys.executable, "-m", program, "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | told, stderr=log)
        try:
            file = Path(log.name)
            yield Server(_address(file), process.pid, file)
        finally:
            process.terminate()
            process.wait(_PATIENCE_SECONDS)


@contextmanager
def telling(module: str, **variables: str) -> Iterator[Server]:
    """One of our own programs, which prints its address."""
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            assert process.stdout is not None
            try:
                url = process.stdout.readline().strip()
                if not url:
                    raise RuntimeError(f"{module}: {Path(log.name).read_text()}")
                yield Server(url, process.pid, Path(log.name))
            finally:
                process.terminate()
                process.wait(_PATIENCE_SECONDS)


def _address(log: Path) -> str:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := re.search(r"Swagger: (http://\S+)/docs", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


def line(cells: Iterable[str]) -> str:
    """One line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"
