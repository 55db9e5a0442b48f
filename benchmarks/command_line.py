"""How long a person waits: for help, and for a server to be ready.

Each figure is the minimum, median and maximum over several runs of a whole process.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

RUNS = 7
ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "core"]


def table() -> str:
    """The table, in Markdown."""
    rows = ["| seconds | min | median | max | target |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        rows.append(_row("`vopros --help`", _help, "0.5"))
        for provider in ("echo", "local"):
            variables = environ(Path(folder) / provider, provider)
            first = _ready(variables)
            name = f"start to ready, second and later, `{provider}`"
            rows.append(_row(name, partial(_ready, variables), "3"))
            rows.append(f"| the first start of it | | {first:.2f} | | |")
    return "\n".join(rows)


def _row(name: str, measure: Callable[[], float], target: str) -> str:
    seconds = [measure() for _ in range(RUNS)]
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"| {name} | {low:.2f} | {middle:.2f} | {high:.2f} | {target} |"


def _help() -> float:
    started = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def environ(folder: Path, provider: str) -> dict[str, str]:
    """The variables of a server with a new database in a new folder."""
    folder.mkdir()
    return os.environ | {
        "VOPROS_DATABASE__URL": f"sqlite+aiosqlite:///{folder}/vopros.db",
        "VOPROS_LLM__PROVIDER": provider,
    }


def _ready(environ: dict[str, str]) -> float:
    """From starting the process to the first 200 of /health/ready."""
    started = time.perf_counter()
    server = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"],
        cwd=ROOT,
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with urllib.request.urlopen(f"{address(server)}/health/ready") as answer:
            assert answer.status == 200
        return time.perf_counter() - started
    finally:
        server.terminate()
        server.communicate(timeout=10)


def address(server: subprocess.Popen[str]) -> str:
    """Where a started server says that it listens."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"(http://\S+)/docs", line):
            return found[1]
    raise RuntimeError("the server did not start")
