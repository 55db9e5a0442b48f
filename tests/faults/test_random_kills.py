"""Servers killed at random under load: what was acknowledged is there, and ends once.

A few times here; `make soak` does it as often as is promised.
"""

import asyncio
import random
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from core.db import Database
from tests.conftest import Databases, connected
from tests.support.api import Account, Api, Reading, text_of
from tests.support.config import write_config
from tests.support.postgres import Postgres
from tests.support.process import ServerProcess, vopros
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    completion,
    deltas,
    ending,
    framed,
)

_ASKERS = 20
_KILLS, _KILLS_IN_A_SOAK = 6, 200
_LLM_SECONDS = 5
# What `Asking` adds to the model's deadline, and what is promised beyond that.
_DEADLINE_SECONDS, _GRACE_SECONDS = _LLM_SECONDS + 30, 60

_ROWS = text("SELECT * FROM questions WHERE id > :after ORDER BY id")
_OVERDUE = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-60 seconds')",
    "postgresql": "now() - interval '60 seconds'",
}
_DAY = {
    "sqlite": "date(asked_at)",
    "postgresql": "CAST(asked_at AT TIME ZONE 'UTC' AS date)",
}


def answer_to(content: str) -> str:
    return f"Answer to: {content}"


@dataclass
class Told:
    """What somebody was told of a question of theirs."""

    content: str
    path: str
    key: str | None
    ids: set[int] = field(default_factory=set)
    answer: dict[str, Any] | None = None
    code: str | None = None

    @property
    def is_final(self) -> bool:
        return self.answer is not None or self.code is not None

    def hear_of(self, problem: dict[str, Any]) -> None:
        """A problem ends a question, unless it says that there may be an answer yet."""
        if (question_id := problem.get("question_id")) is None:
            # It was not acknowledged.
            assert problem["status"] == 503, problem
            return
        self.ids.add(question_id)
        if problem["code"] not in ("request_in_progress", "not_stored"):
            self.code = problem["code"]

    def hear(self, question: dict[str, Any]) -> None:
        assert question["content"] == self.content
        assert question["answer"] == answer_to(self.content)
        self.ids.add(question["id"])
        self.answer = question


class Ledger:
    """The questions as they are stored, watched from beside the servers."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.final: dict[int, Any] = {}
        self._after = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        # Never kept open: SQLite's file is to be recovered by the server that starts.
        async with connected(self._url) as database:
            yield database

    async def look(self) -> int:
        """Remember what has become final since; how many are pending."""
        async with self.open() as database, database.reading() as session:
            rows = (await session.execute(_ROWS, {"after": self._after})).all()
            overdue = await session.scalar(
                text(
                    "SELECT count(*) FROM questions WHERE status = 'pending'"
                    f" AND deadline_at < {_OVERDUE[database.dialect]}"
                )
            )
        assert overdue == 0
        pending = [row.id for row in rows if row.status == "pending"]
        for row in rows:
            if row.status != "pending":
                assert self.final.setdefault(row.id, row) == row
        # What comes before the first pending one is known already.
        self._after = min(pending, default=rows[-1].id + 1 if rows else 1) - 1
        return len(pending)

    async def look_at_all(self) -> None:
        """None of what was remembered has changed since."""
        self._after = 0
        assert await self.look() == 0

    async def hurry(self) -> None:
        """Let what is pending be overdue."""
        async with self.open() as database, database.transaction() as session:
            await session.execute(
                text(
                    "UPDATE questions SET deadline_at = asked_at"
                    " WHERE status = 'pending'"
                )
            )


class Fleet:
    """Servers of one configuration, killed and started again."""

    def __init__(self, file: Path, size: int) -> None:
        self._file = file
        self._servers: list[ServerProcess | None] = [None] * size
        self._started: list[asyncio.Task[ServerProcess]] = []
        self.kills = 0

    @property
    def places(self) -> range:
        return range(len(self._servers))

    @property
    def living(self) -> list[str]:
        return [server.url for server in self._servers if server is not None]

    async def start(self, place: int, ledger: Ledger) -> None:
        arguments: list[str | Path] = ["--config", self._file]
        starting = asyncio.to_thread(ServerProcess, *arguments, env=None)
        self._started.append(asyncio.create_task(starting))
        # A test that fails at this moment must find it, to end it.
        server = await asyncio.shield(self._started[-1])
        if len(self._servers) == 1:
            # Nobody has asked this one yet, and it is the only one.
            assert await ledger.look() == 0
        self._servers[place] = server

    async def kill(self, place: int) -> None:
        server = self._servers[place]
        if server is None:
            return
        server.process.kill()
        self._servers[place] = None
        await asyncio.to_thread(server.ended)
        assert "Traceback" not in server.log, server.log

    async def live(self, place: int, kills: int, ledger: Ledger) -> None:
        """Be killed at some moment, start again, and so on."""
        while self.kills < kills:
            await asyncio.sleep(random.uniform(0.1, 1.5))
            await ledger.look()
            if self.kills >= kills:
                return
            self.kills += 1
            await self.kill(place)
            await self.start(place, ledger)

    async def end(self) -> None:
        for server in await asyncio.gather(*self._started, return_exceptions=True):
            if isinstance(server, ServerProcess) and server.process.poll() is None:
                await asyncio.to_thread(server.end, signal.SIGKILL)
                assert "Traceback" not in server.log, server.log


class Asker:
    """Asks one question after the other, of whatever server is alive."""

    def __init__(self, who: Account, fleet: Fleet, http: httpx.AsyncClient) -> None:
        self.who = who
        self.told: list[Told] = []
        self._fleet = fleet
        self._http = http

    async def ask_until(self, enough: asyncio.Event) -> None:
        while not enough.is_set():
            path = random.choice(("/questions", "/questions/stream"))
            key = uuid.uuid4().hex if random.random() < 0.5 else None
            self.told.append(told := Told(f"Why {uuid.uuid4().hex}?", path, key))
            await self._ask(told)
            if key is not None and not told.is_final:
                await self._ask(told)
            await asyncio.sleep(random.uniform(0, 0.1))

    async def ask_again(self) -> None:
        """With a key, until something has come of it."""
        for told in self.told:
            while told.key is not None and not told.is_final:
                await self._ask(told)
                await asyncio.sleep(0 if told.is_final else 0.2)

    async def _ask(self, told: Told) -> None:
        while not self._fleet.living:
            await asyncio.sleep(0.02)
        request = self._http.build_request(
            "POST",
            random.choice(self._fleet.living) + told.path,
            json={"content": told.content},
            headers=self.who.auth | ({"Idempotency-Key": told.key} if told.key else {}),
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                await self._read(told, response)
            finally:
                await response.aclose()
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            pass  # Nobody knows what became of it.

    async def _read(self, told: Told, response: httpx.Response) -> None:
        if response.status_code == 200:
            await self._read_stream(told, Reading(response))
            return
        await response.aread()
        if response.status_code == 201:
            told.hear(response.json())
        else:
            told.hear_of(response.json())

    async def _read_stream(self, told: Told, reading: Reading) -> None:
        events = []
        async for event in reading:
            events.append(event)
            if event.name == "meta":
                told.ids.add(event.data["id"])
            elif event.name == "done":
                assert text_of(events) == answer_to(told.content)
                told.hear(event.data)
            elif event.name == "error":
                told.hear_of(event.data)


async def thinks(wire: Wire, received: Received) -> None:
    """Takes its time; its answer names the question."""
    answer = answer_to(received.question)
    await asyncio.sleep(random.uniform(0, 0.3))
    if not received.json.get("stream"):
        await wire.respond(completion(answer))
        return
    await wire.send(STREAM_HEAD)
    for piece in answer.partition("Why "):
        await wire.send(*map(framed, deltas(piece)))
        await asyncio.sleep(random.uniform(0, 0.2))
    await wire.send(*map(framed, ending()), "0\r\n\r\n")


@pytest.fixture
async def url(
    databases: Databases, database_kind: str, tmp_path: Path
) -> AsyncIterator[str]:
    """A database that keeps what it has acknowledged, as in production."""
    if database_kind == "sqlite":
        yield await databases.migrated(database_kind)
        return
    postgres = Postgres(durable=True)
    try:
        found = postgres.url(await postgres.create_database())
        file = write_config(tmp_path / "migrate.toml", found)
        done = await asyncio.to_thread(vopros, "--config", file, "migrate")
        assert done.returncode == 0, done.stderr
        yield found
        assert "deadlock detected" not in postgres.log
    finally:
        postgres.stop()


@pytest.mark.slow
@pytest.mark.soak
async def test_A01_A02_A03_A20_F04_what_was_acknowledged_survives_random_kills(
    url: str,
    database_kind: str,
    upstream: Upstream,
    tmp_path: Path,
    is_soak: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = write_config(
        tmp_path / "app.toml",
        url,
        upstream.base_url,
        auth="access_token_seconds = 86400",
        llm=f"deadline_seconds = {_LLM_SECONDS}",
    )
    fleet = Fleet(file, size=1 if database_kind == "sqlite" else 2)
    ledger = Ledger(url)
    kills = _KILLS_IN_A_SOAK if is_soak else _KILLS
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
    async with (
        upstream.behaving(thinks),
        httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as http,
    ):
        try:
            for place in fleet.places:
                await fleet.start(place, ledger)
            api = Api(fleet.living[0])
            askers = [Asker(await api.account(), fleet, http) for _ in range(_ASKERS)]
            await api.close()
            await under_fire(fleet, kills, askers, ledger)
            if not is_soak:
                await ledger.hurry()
                await fleet.kill(0)
                await fleet.start(0, ledger)
            async with asyncio.timeout(_DEADLINE_SECONDS + _GRACE_SECONDS):
                while await ledger.look():
                    await asyncio.sleep(0.5)
            async with asyncio.timeout(60):
                await asyncio.gather(*(asker.ask_again() for asker in askers))
        finally:
            await fleet.end()
        asked = Counter(received.question for received in upstream.requests)
    await ledger.look_at_all()
    assert_kept(ledger.final, askers, asked)
    await assert_counted(ledger)
    ends = Counter(row.error_code or row.status for row in ledger.final.values())
    assert ends["owner_lost"] and ends["answered"]
    with capfd.disabled():
        print(f"\n{database_kind}: {fleet.kills} kills, {dict(ends)}")


async def under_fire(
    fleet: Fleet, kills: int, askers: list[Asker], ledger: Ledger
) -> None:
    """Ask all the time while one server after the other is killed."""
    enough = asyncio.Event()
    async with asyncio.TaskGroup() as asking:
        for asker in askers:
            asking.create_task(asker.ask_until(enough))
        async with asyncio.TaskGroup() as dying:
            for place in fleet.places:
                dying.create_task(fleet.live(place, kills, ledger))
        enough.set()


def assert_kept(rows: dict[int, Any], askers: list[Asker], asked: Counter[str]) -> None:
    """What each asker was told is what is stored, and no model was asked twice."""
    assert max(asked.values()) == 1
    assert max(Counter(row.content for row in rows.values()).values()) == 1
    for row in rows.values():
        assert row.answer in (None, answer_to(row.content))
    for asker in askers:
        for told in asker.told:
            assert len(told.ids) <= 1
            for question_id in told.ids:
                row = rows[question_id]
                assert (row.user_id, row.content) == (asker.who.id, told.content)
                if told.answer is not None:
                    assert row.status == "answered"
                    assert row.answer == told.answer["answer"]
                if told.code is not None:
                    assert row.status in ("failed", "interrupted")
                    assert row.error_code == told.code


async def assert_counted(ledger: Ledger) -> None:
    """No question is stored without being counted, or the other way round."""
    async with ledger.open() as database, database.reading() as session:
        miscounted = await session.scalars(
            text(
                "SELECT user_id FROM questions_usage AS used WHERE questions <> ("
                " SELECT count(*) FROM questions WHERE user_id = used.user_id"
                f" AND {_DAY[database.dialect]} = used.day)"
            )
        )
        assert miscounted.all() == []
