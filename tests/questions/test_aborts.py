"""Thousands hang up at random moments: nothing is lost, and nobody gets another's."""

import asyncio
import logging
import random
import re
import uuid
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from core.db import Database
from core.testing import Running
from providers.failover import FailoverChat
from tests.conftest import served
from tests.support.api import Account, Api
from tests.support.config import write_config
from tests.support.leaver import asking
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    answers,
    deltas,
    ending,
    framed,
)

_ABORTS, _ABORTS_IN_A_SOAK = 500, 5_000
_AT_A_TIME = 25
_NONCE = re.compile(rb"Answer to: ([0-9a-f]{32})")


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, upstream: Upstream
) -> AsyncIterator[Running]:
    """A service with two connections to its database."""
    file = write_config(
        tmp_path_factory.mktemp("service") / "app.toml",
        database_url,
        upstream.base_url,
        database="pool_size = 2",
    )
    async with served(file) as (found, _):
        yield found


async def answers_sooner_or_later(wire: Wire, received: Received) -> None:
    await asyncio.sleep(random.uniform(0, 0.03))
    if "stream" not in received.json:
        await answers(wire, received)
        return
    pieces = map(framed, deltas(f"Answer to: {received.question}"))
    await wire.send(STREAM_HEAD, *pieces)
    await asyncio.sleep(random.uniform(0, 0.03))
    await wire.send(*map(framed, ending()), "0\r\n\r\n")


class Crowd:
    """Askers who each wait for as long as chance will have it."""

    def __init__(self, api: Api, people: list[Account]) -> None:
        self._api = api
        self._people = people
        # What one takes who waits for the end; it differs from machine to machine.
        self._usual_seconds = 0.1
        self.seen: Counter[str] = Counter()

    async def come_and_go(self, count: int) -> None:
        for _ in range(count):
            await self._ask()

    async def _ask(self) -> None:
        who, nonce = random.choice(self._people), uuid.uuid4().hex
        path = random.choice(["/questions", "/questions/stream"])
        client = await asking(self._api, who, nonce, path)
        got, clock = bytearray(), asyncio.get_running_loop().time
        started, is_patient = clock(), random.random() < 0.3
        moment = random.uniform(0, self._usual_seconds)
        try:
            async with asyncio.timeout(30 if is_patient else moment):
                while data := await client.reader.read(65_536):
                    got += data
                    if b"event: done" in got or b'"answered_at"' in got:
                        self._usual_seconds = clock() - started
                        break
        except TimeoutError:
            assert not is_patient
            self.seen["left"] += 1
        client.hang_up(by_reset=random.random() < 0.5)
        if told := _NONCE.findall(bytes(got)):
            self.seen["answered"] += 1
            assert {each.decode() for each in told} == {nonce}
            if found := re.search(rb'"user_id": ?(\d+)', got):
                assert int(found[1]) == who.id


@pytest.mark.slow
@pytest.mark.soak
async def test_F16_A04_aborts_lose_no_connection_and_mix_up_no_answers(
    api: Api,
    service: Running,
    upstream: Upstream,
    database_kind: str,
    caplog: pytest.LogCaptureFixture,
    is_soak: bool,
) -> None:
    aborts = _ABORTS_IN_A_SOAK if is_soak else _ABORTS
    caplog.set_level(logging.WARNING)
    people = [await api.account() for _ in range(10)]
    crowd = Crowd(api, people)
    database: Database = service.service(Database)
    with warnings.catch_warnings(record=True) as warned:
        async with upstream.behaving(answers_sooner_or_later):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(_AT_A_TIME):
                    tasks.create_task(crowd.come_and_go(aborts // _AT_A_TIME))
            await all_ended(database)
    # Chance has seen to both.
    assert crowd.seen["left"] > aborts / 10
    assert crowd.seen["answered"] > aborts / 10
    # The last commit is seen before its connection is back.
    async with asyncio.timeout(60):
        while [pool.checkedout() for pool in pools(database)] != [0, 0]:
            await asyncio.sleep(0.01)
    if database_kind == "postgresql":
        assert await idle_in_transaction(database) == 0
    said = [*caplog.messages, *(str(each.message) for each in warned)]
    assert not [line for line in said if "garbage collector" in line]
    assert "request.failed" not in caplog.messages
    (backend,) = service.service(FailoverChat).backends
    assert backend.bulkhead.in_flight == 0
    for who in people:
        for question in await api.newest(who):
            assert question["user_id"] == who.id
            said_of_it = (question["answer"] or "").removeprefix("Answer to: ")
            assert said_of_it in ("", question["content"])


def pools(database: Database) -> list[Any]:
    """Those that requests take connections from."""
    return [engine.pool for engine in (database._writer, database._reader)]


async def all_ended(database: Database) -> None:
    pending = text("SELECT count(*) FROM questions WHERE status = 'pending'")
    async with asyncio.timeout(30):
        while True:
            async with database.reading() as session:
                if not await session.scalar(pending):
                    return
            await asyncio.sleep(0.05)


async def idle_in_transaction(database: Database) -> int:
    found = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE state LIKE 'idle in transaction%' AND datname = current_database()"
    )
    async with database.reading() as session:
        return await session.scalar(found) or 0
