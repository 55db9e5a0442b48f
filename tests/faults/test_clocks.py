"""A clock that jumps, or shows another place's time, moves no deadline."""

import asyncio
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import jwt
import pytest
from sqlalchemy import select

from core.db import Database, db_now
from modules.questions.models import QuestionRow
from modules.questions.upkeep import Upkeep
from tests.conftest import Databases, connected, served
from tests.support.api import Api, assert_problem
from tests.support.config import write_config
from tests.support.process import serving
from tests.support.upstream import Upstream

HOUR = timedelta(hours=1)
_LASTS = timedelta(seconds=90)
"""The deadline of the provider as shipped, and what may follow it."""


def jump(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Set this process's clock; the database has its own, as has what is monotonic."""
    usual = time.time

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + by

    monkeypatch.setattr("time.time", lambda: usual() + by.total_seconds())
    monkeypatch.setattr("core.app.datetime", Jumped)


async def moments(database: Database) -> tuple[datetime, datetime, datetime]:
    """When the newest question was asked, its deadline, and the database's time."""
    newest = (
        select(QuestionRow.asked_at, QuestionRow.deadline_at, db_now())
        .order_by(QuestionRow.id.desc())
        .limit(1)
    )
    async with database.reading() as session:
        asked_at, deadline_at, now = (await session.execute(newest)).one()
    return asked_at, deadline_at, now


@pytest.mark.slow
@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["forward", "back"])
async def test_F40_a_clock_that_jumps_moves_no_deadline(
    tmp_path: Path,
    databases: Databases,
    database_kind: str,
    upstream: Upstream,
    by: timedelta,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)
    async with served(file) as (service, api):
        ada = await api.account()
        async with upstream.stalled() as release:
            asking = asyncio.create_task(api.ask(ada, "What time is it?"))
            await upstream.asked()
            jump(monkeypatch, by)
            await service.service(Upkeep).interrupt_overdue()
            done, _ = await asyncio.wait({asking}, timeout=0.2)
            assert not done
            release.set()
            assert (await asking).status_code == 201
        assert (await api.ask(ada, "And now?")).status_code == 201
        asked_at, deadline_at, now = await moments(service.service(Database))
    assert timedelta() <= now - asked_at < timedelta(minutes=1)
    assert deadline_at - asked_at == pytest.approx(_LASTS, abs=timedelta(seconds=1))


@pytest.mark.slow
@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["forward", "back"])
async def test_F40_a_clock_that_jumps_makes_no_timeout_longer(
    tmp_path: Path,
    databases: Databases,
    upstream: Upstream,
    by: timedelta,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(
        tmp_path / "app.toml", url, upstream.base_url, llm="deadline_seconds = 1"
    )
    async with served(file) as (_, api), upstream.stalled():
        ada = await api.account()
        asking = asyncio.create_task(api.ask(ada, "How long?"))
        await upstream.asked()
        jump(monkeypatch, by)
        async with asyncio.timeout(60):
            problem = assert_problem(await asking, 504, "provider_timeout")
        assert [attempt["provider"] for attempt in problem["attempts"]] == ["main"]


@pytest.mark.slow
async def test_F40_a_server_elsewhere_tells_the_same_moments(
    tmp_path: Path, databases: Databases, database_kind: str, upstream: Upstream
) -> None:
    url = await databases.migrated(database_kind)
    if database_kind == "postgresql":
        name = url.rpartition("/")[2]
        zone = f"ALTER DATABASE {name} SET timezone = 'America/New_York'"
        await databases.postgres.execute(zone)
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)
    with serving("--config", file, env={"TZ": "America/New_York"}) as server:
        api = Api(server.url)
        ada = await api.account()
        question = (await api.ask(ada, "What time is it?")).json()
        claims = jwt.decode(ada.token, options={"verify_signature": False})
        begun = (await api.get("/auth/sessions", ada)).json()[0]["created_at"]
        await api.close()
    now = datetime.now(UTC)
    told = [question["asked_at"], question["answered_at"], begun]
    read = [datetime.fromisoformat(moment) for moment in told]
    read.append(datetime.fromtimestamp(claims["iat"], UTC))
    for moment in read:
        assert timedelta(seconds=-2) < now - moment < timedelta(minutes=1)
    assert 0 < claims["exp"] - claims["iat"] <= 3_600
    async with connected(url) as database:
        asked_at, deadline_at, _ = await moments(database)
    assert asked_at == read[0]
    assert deadline_at - asked_at == pytest.approx(_LASTS, abs=timedelta(seconds=1))
