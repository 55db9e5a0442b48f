"""What a question costs, beside two references that leave out what a service needs.

LIMIT-1 (`references/forwarding.py`) forwards bytes; LIMIT-2, in `handwritten.py`, reads
a token and writes twice. This service has a token, the session check, every limit set
and counted though too high to bite, and both writes. One server after the other is
asked, round by round; servers share one core, all else keeps to the others.
"""

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from math import isnan
from typing import NamedTuple

import jwt

from benchmarks.clients import clients, log_in, register
from benchmarks.command_line import ROOT
from benchmarks.load import Figures, Job
from benchmarks.model import CHUNKS
from benchmarks.references.common import PEOPLE, POOL_SIZE
from benchmarks.servers import (
    Server,
    core_apart,
    line,
    new_database,
    postgresql,
    served,
    telling,
)
from tests.support.config import SECRET
from tests.support.postgres import Postgres

QUESTION = "What is the airspeed velocity of an unladen swallow? " * 4
ROUNDS = 5
W2_ROUNDS = 3
OURS, LIMIT_1, LIMIT_2 = "this service", "LIMIT-1", "LIMIT-2"
LIMITS = {
    "questions__per_minute": "1000000",
    "questions__in_flight": "1000000",
    "questions__per_day": "1000000000",
    "questions__tokens_per_day": "1000000000000",
    "questions__service_per_day": "1000000000000",
    "questions__service_tokens_per_day": "1000000000000",
}


@dataclass(frozen=True)
class Target:
    """One that is asked."""

    server: Server
    tokens: list[str]
    stream_path: str
    streamed: Mapping[str, object]
    """What the body of a question has besides, to be streamed."""

    def job(self, connections: int, requests: int, *, is_warm: bool = True) -> Job:
        """Ask and wait."""
        url = f"{self.server.url}/questions"
        return Job(url, _body(), connections, requests, self.tokens, is_warm)

    def stream(self, connections: int) -> Job:
        """Ask and read, each connection once."""
        url, body = f"{self.server.url}{self.stream_path}", _body(**self.streamed)
        return Job(url, body, connections, connections, self.tokens)


class Run(NamedTuple):
    """One load, and what the server took for it."""

    figures: Figures
    cpu_seconds: float
    more_bytes: int
    """By how much its memory grew, at its peak."""


def table() -> str:
    """The tables, in Markdown."""
    _allow_many_files()
    with (
        core_apart() as core,
        postgresql() as postgres,
        telling("benchmarks.model") as model,
    ):
        parts = [
            _w1_w3_w4(core, postgres, model),
            _w2(core, postgres, model),
            _sqlite(core, model),
        ]
    return "\n\n".join(parts)


def _w1_w3_w4(core: set[int], postgres: Postgres, model: Server) -> str:
    with _targets(core, postgres, f"{model.url}/instant/v1") as targets:
        w1 = _rounds(targets, _w1)
        w3 = _rounds(targets, lambda target: _w3(target, model))
        w4 = _rounds(targets, lambda target: _w4(target, model))
    return "\n\n".join(
        (
            _section(
                "W1: 64 connections, a model that answers at once",
                (
                    "CPU ms a question",
                    "questions/s",
                    "p50 ms",
                    "p99 ms",
                    "not answered",
                ),
                w1,
                ("1.00", "", "", "", ""),
                digits=(3, 0, 1, 1, 0),
                absolute=("", "", "", "", "0"),
            ),
            _section(
                f"W3: 50 streams of {CHUNKS} chunks, 20 ms apart",
                ("CPU us a chunk", "first token added, ms", "total added, ms"),
                w3,
                ("1.00", "1.50", ""),
                digits=(1, 1, 1),
            ),
            _section("W4: one at a time", ("added ms",), w4, ("2.00",), digits=(2,)),
        )
    )


def _w1(target: Target) -> Sequence[float]:
    run = _measure(target.server, target.job(64, 4_000))
    figures = run.figures
    cpu_ms = 1_000 * run.cpu_seconds / figures.answered
    rest = (figures.p50_ms, figures.p99_ms, figures.unanswered)
    return (cpu_ms, figures.per_second, *rest)


def _w3(target: Target, model: Server) -> Sequence[float]:
    alone = _direct(model).stream(50)
    direct = _measure(model, alone).figures
    run = _measure(target.server, target.stream(50))
    assert not run.figures.unanswered, run.figures.refused
    cpu_us = 1e6 * run.cpu_seconds / (run.figures.answered * CHUNKS)
    return (
        cpu_us,
        run.figures.first_p50_ms - direct.first_p50_ms,
        run.figures.p50_ms - direct.p50_ms,
    )


def _w4(target: Target, model: Server) -> Sequence[float]:
    direct = _measure(model, _direct(model).job(1, 300)).figures
    figures = _measure(target.server, target.job(1, 300)).figures
    assert not figures.unanswered, figures.refused
    return (figures.p50_ms - direct.p50_ms,)


def _w2(core: set[int], postgres: Postgres, model: Server) -> str:
    """Servers anew in every round: of memory only the first peak tells anything."""
    found: dict[str, list[Sequence[float]]] = {}
    for _ in range(W2_ROUNDS):
        with _targets(core, postgres, f"{model.url}/slow/v1") as targets:
            for name, target in targets.items():
                _measure(target.server, target.job(20, 20))
                run = _measure(target.server, target.job(1_000, 3_000, is_warm=False))
                cells = (run.figures.answered, run.figures.seconds)
                kilobytes = run.more_bytes / 1_000 / 1_000
                found.setdefault(name, []).append((*cells, kilobytes))
    return _section(
        f"W2: 3,000 questions, 1,000 in flight, a model that takes 1 s, {POOL_SIZE}"
        " connections to the database",
        ("answered", "wall s", "KB of memory a question in flight"),
        found,
        ("", "1.15", ""),
        digits=(0, 2, 1),
        absolute=("3000", "", "50"),
    )


def _sqlite(core: set[int], model: Server) -> str:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{folder}/vopros.db"
        with _ours(url, f"{model.url}/instant/v1") as target:
            target.server.keep_to(core)
            runs = [
                _measure(target.server, target.job(16, 1_000)) for _ in range(ROUNDS)
            ]
            locked = target.server.log.read_text().count("database is locked")
    unanswered = sum(run.figures.unanswered for run in runs)
    rate = statistics.median(run.figures.per_second for run in runs)
    title = "SQLite, W1 with 16 connections"
    columns = (title, "questions/s", "not answered", '"database is locked"')
    rows = [(OURS, f"{rate:.0f}", str(unanswered), str(locked))]
    rows.append(("target, at least; at most", "400", "0", "0"))
    return "\n".join(map(line, [columns, ["---"] * 4, *rows]))


def _section(
    title: str,
    columns: Sequence[str],
    found: Mapping[str, Sequence[Sequence[float]]],
    targets: Sequence[str],
    *,
    digits: Sequence[int],
    absolute: Sequence[str] = (),
) -> str:
    """Medians of the rounds; the ratio is the median of the rounds' own ratios."""
    rows = [(title, *columns), ["---"] * (len(columns) + 1)]
    for name, rounds in found.items():
        medians = map(statistics.median, zip(*rounds, strict=True))
        cells = zip(medians, digits, strict=True)
        rows.append((name, *(f"{figure:,.{places}f}" for figure, places in cells)))
    pairs = zip(found[OURS], found[LIMIT_2], strict=True)
    ratios = [[_ratio(*both) for both in zip(*pair, strict=True)] for pair in pairs]
    medians = map(statistics.median, zip(*ratios, strict=True))
    told = ("" if isnan(ratio) else f"{ratio:.2f}" for ratio in medians)
    rows.append((f"{OURS} / {LIMIT_2}", *told))
    rows.append(("target of that, at most", *targets))
    if absolute:
        rows.append(("target", *absolute))
    return "\n".join(map(line, rows))


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else float("nan")


def _rounds(
    targets: Mapping[str, Target], measure: Callable[[Target], Sequence[float]]
) -> dict[str, list[Sequence[float]]]:
    """Targets take turns, so that all meet the same moments of the machine."""
    found: dict[str, list[Sequence[float]]] = {name: [] for name in targets}
    for number in range(ROUNDS + 1):
        # Whoever comes second finds the machine as the first has left it.
        names = list(targets) if number % 2 else list(targets)[::-1]
        for name in names:
            figures = measure(targets[name])
            # The first round only warms up.
            if number:
                found[name].append(figures)
    return found


def _measure(server: Server, job: Job) -> Run:
    """Have another process ask."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        try:
            load.stdin.write(json.dumps(asdict(job)) + "\n")
            load.stdin.flush()
            assert load.stdout.readline() == "ready\n"
            before, cpu = server.forget_peak(), server.cpu_seconds()
            load.stdin.write("\n")
            load.stdin.flush()
            figures = Figures(**json.loads(load.stdout.readline()))
        except BaseException:
            load.kill()
            raise
        return Run(figures, server.cpu_seconds() - cpu, server.peak_bytes() - before)


@contextmanager
def _targets(
    core: set[int], postgres: Postgres, model_url: str
) -> Iterator[dict[str, Target]]:
    """All three, on one core."""
    with ExitStack() as stack:
        targets = {
            OURS: stack.enter_context(_ours(new_database(postgres), model_url)),
            LIMIT_2: stack.enter_context(_handwritten(postgres, model_url)),
            LIMIT_1: stack.enter_context(_forwarding(model_url)),
        }
        for target in targets.values():
            target.server.keep_to(core)
        yield targets


@contextmanager
def _ours(database_url: str, model_url: str) -> Iterator[Target]:
    with served(
        database_url,
        **LIMITS,
        database__pool_size=str(POOL_SIZE),
        llm__provider="main",
        providers__main__type="openai",
        providers__main__base_url=model_url,
        providers__main__model="fake",
        providers__main__api_key="none",
    ) as server:
        yield Target(server, asyncio.run(_sign_in(server)), "/questions/stream", {})


async def _sign_in(server: Server) -> list[str]:
    tokens = []
    async with clients(server.url, 1) as (client,):
        for number in range(PEOPLE):
            name = f"person{number}"
            (await client.ask(register(name))).json()
            token = (await client.ask(log_in(name))).json()
            tokens.append(token["access_token"])
    return tokens


@contextmanager
def _handwritten(postgres: Postgres, model_url: str) -> Iterator[Target]:
    url = new_database(postgres).replace("postgresql+asyncpg:", "postgresql:")
    until = int(time.time()) + 24 * 60 * 60
    tokens = [
        jwt.encode({"sub": str(number + 1), "exp": until}, SECRET)
        for number in range(PEOPLE)
    ]
    with telling(
        "benchmarks.references.handwritten",
        REFERENCE_MODEL_URL=model_url,
        REFERENCE_DATABASE_URL=url,
        REFERENCE_KEY=SECRET,
    ) as server:
        yield Target(server, tokens, "/questions", {"stream": True})


@contextmanager
def _forwarding(model_url: str) -> Iterator[Target]:
    program = "benchmarks.references.forwarding"
    with telling(program, REFERENCE_MODEL_URL=model_url) as server:
        yield Target(server, [], "/questions", {"stream": True})


def _direct(model: Server) -> Target:
    """The model itself, with nobody in between."""
    return Target(model, [], "/questions", {"stream": True})


def _body(**more: object) -> str:
    question = {"content": QUESTION, **more}
    # As LIMIT-1 looks for it.
    return json.dumps(question, separators=(",", ":"))


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
