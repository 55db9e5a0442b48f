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

    def cpu_seconds(self) -> float:
        """What all its threads have used so far, to the nanosecond (Linux)."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

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


@contextmanager
def database() -> Iterator[str]:
    """The URL of an empty database."""
    postgres = Postgres(durable=True)
    try:
        yield postgres.url(asyncio.run(postgres.create_database()))
    finally:
        postgres.stop()


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
            yield Server(_address(Path(log.name)), process.pid)
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
