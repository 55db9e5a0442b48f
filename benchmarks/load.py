"""Ask over so many connections, each one question at a time; a process of its own.

`python -m benchmarks.load` reads a `Job` as JSON, prints "ready", and begins when it
reads another line. It prints `Figures` as JSON in the end.
"""

import asyncio
import itertools
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.model import TOKEN
from tests.support.raw import request

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LONGEST_SECONDS = 60


@dataclass(frozen=True)
class Job:
    """What to ask, and how."""

    url: str
    body: str
    connections: int
    requests: int
    tokens: list[str] = field(default_factory=list)
    """Each connection is somebody's; these take turns."""
    is_warm: bool = True
    """Whether all connections are open, and used once, when the clock starts."""


@dataclass(frozen=True)
class Figures:
    """What came of it; milliseconds until the first token, and until the end."""

    answered: int
    refused: dict[str, int]
    seconds: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float

    @property
    def unanswered(self) -> int:
        return sum(self.refused.values())

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


class _Connection(asyncio.Protocol):
    """Reads answers as cheaply as Python can."""

    def __init__(self) -> None:
        self._done: asyncio.Future[int] | None = None
        self._reset()

    def _reset(self) -> None:
        self._received = bytearray()
        self._needed = 0
        self._is_chunked = False
        self.first_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if not self._needed and not self._is_chunked:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            if length := _LENGTH.search(received, 0, end):
                self._needed = end + 4 + int(length[1])
            else:
                self._is_chunked = True
        if not self.first_at and TOKEN in received:
            self.first_at = time.perf_counter()
        is_whole = (
            received.endswith(b"\r\n0\r\n\r\n")
            if self._is_chunked
            else len(received) >= self._needed
        )
        if is_whole and self._done is not None and not self._done.done():
            self._done.set_result(int(received[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionResetError())

    async def ask(self, message: bytes) -> int:
        """The status, once everything is there."""
        self._reset()
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return await self._done


class _Load:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._address = urlsplit(job.url)
        self._left = job.requests
        self._ms: list[float] = []
        self._first_ms: list[float] = []
        self._refused: Counter[str] = Counter()

    async def run(self) -> Figures:
        job, messages = self._job, self._messages()
        connections = list(itertools.islice(messages, job.connections))
        opened = [await self._open() for _ in connections] if job.is_warm else []
        await asyncio.gather(
            *(one.ask(what) for one, what in zip(opened, connections, strict=False))
        )
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        work = itertools.zip_longest(opened, connections)
        await asyncio.gather(*(self._ask(one, what) for one, what in work))
        seconds = time.perf_counter() - started
        percentiles = statistics.quantiles(self._ms, n=100)
        return Figures(
            answered=len(self._ms),
            refused=dict(self._refused),
            seconds=seconds,
            p50_ms=percentiles[49],
            p99_ms=percentiles[98],
            first_p50_ms=statistics.median(self._first_ms or [0]),
        )

    async def _open(self) -> _Connection:
        host, port = self._address.hostname or "", self._address.port or 0
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, host, port))[1]

    async def _ask(self, connection: _Connection | None, message: bytes) -> None:
        while self._left > 0:
            self._left -= 1
            started = time.perf_counter()
            try:
                if connection is None:
                    connection = await self._open()
                async with asyncio.timeout(_LONGEST_SECONDS):
                    status = await connection.ask(message)
            except OSError as error:  # TimeoutError is one
                self._refused[type(error).__name__] += 1
                connection = None
                continue
            if status not in (200, 201):
                self._refused[str(status)] += 1
                continue
            self._ms.append(1_000 * (time.perf_counter() - started))
            if connection.first_at:
                self._first_ms.append(1_000 * (connection.first_at - started))

    def _messages(self) -> Iterator[bytes]:
        job, body = self._job, self._job.body.encode()
        about = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        for token in itertools.cycle(job.tokens or [""]):
            who = (f"Authorization: Bearer {token}",) if token else ()
            yield request("POST", self._address.path, *about, *who, body=body)


if __name__ == "__main__":
    given = Job(**json.loads(sys.stdin.readline()))
    print(json.dumps(asdict(uvloop.run(_Load(given).run()))))
