"""Sessions: seen by their owner, and ended at once and everywhere (J17, A4, Q01)."""

import asyncio
import uuid
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, update

from core.db import Database, db_after
from core.testing import Running
from modules.auth.models import AttemptsRow, RefreshTokenRow, SessionRow
from modules.auth.sessions import MOST_LISTED, Sessions
from tests.conftest import Databases, served
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config

SHOWN = {"id", "created_at", "last_used_at", "expires_at", "client", "is_current"}


async def sessions(api: Api, who: Account) -> list[dict[str, object]]:
    answer = await api.get("/auth/sessions", who)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = answer.json()
    return found


async def post(api: Api, path: str, who: Account) -> int:
    answer = await api.http.post(path, headers=who.auth)
    assert answer.content == b""
    return answer.status_code


async def assert_over(api: Api, who: Account) -> None:
    assert_problem(await api.get("/users/me", who), 401, "invalid_token")
    assert_problem(await api.refresh(who.refresh_token), 401, "invalid_grant")


async def test_a_session_is_shown_with_its_client_and_the_current_one_is_marked(
    api: Api, ada: Account
) -> None:
    form = {"grant_type": "password", "username": ada.username, "password": PASSWORD}
    agent = {"User-Agent": "Phone/1.0\tof Ada " + "x" * 300}
    answer = await api.http.post("/auth/token", data=form, headers=agent)
    assert answer.status_code == 200
    newer, current = await sessions(api, ada)
    assert newer.keys() == current.keys() == SHOWN
    assert (newer["is_current"], current["is_current"]) == (False, True)
    assert str(newer["client"]).startswith("Phone/1.0of Ada xxx")
    assert len(str(newer["client"])) == 200
    assert str(current["client"]).startswith("python-httpx/")
    await api.refresh(ada.refresh_token)
    assert [found["is_current"] for found in await sessions(api, ada)] == [True, False]


async def test_a_session_without_a_user_agent_has_no_client(
    api: Api, ada: Account
) -> None:
    form = {"grant_type": "password", "username": ada.username, "password": PASSWORD}
    await api.http.post("/auth/token", data=form, headers={"User-Agent": ""})
    assert (await sessions(api, ada))[0]["client"] is None


async def test_C5_J17_a_logout_ends_this_session_and_no_other(
    api: Api, ada: Account
) -> None:
    other = await api.signed_in(ada.id, ada.username)
    assert await post(api, "/auth/logout", ada) == 204
    await assert_over(api, ada)
    (left,) = await sessions(api, other)
    assert left["is_current"]
    again = await api.http.post("/auth/logout", headers=ada.auth)
    assert_problem(again, 401, "invalid_token")


async def test_C5_J17_a_logout_of_all_ends_every_session_of_ones_own_only(
    api: Api, ada: Account
) -> None:
    other, bob = await api.signed_in(ada.id, ada.username), await api.account()
    assert await post(api, "/auth/logout-all", ada) == 204
    for over in (ada, other):
        await assert_over(api, over)
    assert len(await sessions(api, bob)) == 1
    assert len(await sessions(api, await api.signed_in(ada.id, ada.username))) == 1


async def test_J17_a_session_is_ended_by_its_id(api: Api, ada: Account) -> None:
    other = await api.signed_in(ada.id, ada.username)
    (current,) = (s for s in await sessions(api, other) if s["is_current"])
    path = f"/auth/sessions/{current['id']}"
    ended = await api.http.delete(path, headers=ada.auth)
    assert (ended.status_code, ended.content) == (204, b"")
    await assert_over(api, other)
    again = await api.http.delete(path, headers=ada.auth)
    assert_problem(again, 404, "session_not_found")
    assert len(await sessions(api, ada)) == 1


async def test_A04_Q01_a_session_of_somebody_else_is_not_there_even_for_admins(
    api: Api, ada: Account, admin: Account
) -> None:
    bob = await api.account()
    (of_bob,) = await sessions(api, bob)
    for who in (ada, admin):
        told = []
        for session_id in (of_bob["id"], uuid.uuid4()):
            path = f"/auth/sessions/{session_id}"
            answer = await api.http.delete(path, headers=who.auth)
            problem = assert_problem(answer, 404, "session_not_found")
            del problem["request_id"], problem["instance"]
            told.append(problem)
        assert told[0] == told[1]
    assert len(await sessions(api, bob)) == 1


@pytest.mark.parametrize("junk", ["1", "x", "8c3b0d5e-6a52", "%00", "8" * 5000])
async def test_what_is_no_session_id_is_a_precise_problem(
    api: Api, somebody: Account, junk: str
) -> None:
    answer = await api.http.delete(f"/auth/sessions/{junk}", headers=somebody.auth)
    assert_problem(answer, answer.status_code)
    assert answer.status_code in (404, 422)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/auth/sessions"),
        ("DELETE", "/auth/sessions/1f0e7a52-90b3-4c1d-8a3e-55b1c7d0e9aa"),
        ("POST", "/auth/logout"),
        ("POST", "/auth/logout-all"),
    ],
)
async def test_an_access_token_is_needed(api: Api, method: str, path: str) -> None:
    assert_problem(await api.http.request(method, path), 401, "token_missing")


async def test_J17_a_new_password_ends_the_refreshing_of_all_other_sessions(
    api: Api, ada: Account
) -> None:
    other = await api.signed_in(ada.id, ada.username)
    body = {"current_password": PASSWORD, "new_password": f"{PASSWORD}-new"}
    changed = await api.http.put("/auth/password", json=body, headers=ada.auth)
    assert changed.status_code == 204
    await assert_over(api, other)
    assert (await api.refresh(ada.refresh_token)).status_code == 200


async def test_a_session_that_is_over_by_itself_is_neither_shown_nor_ended(
    service: Running, api: Api, ada: Account
) -> None:
    other = await api.signed_in(ada.id, ada.username)
    (over,) = (s for s in await sessions(api, other) if s["is_current"])
    id_ = uuid.UUID(str(over["id"]))
    async with service.service(Database).transaction() as session:
        ended = update(SessionRow).where(SessionRow.id == id_)
        await session.execute(ended.values(expires_at=db_after(-1)))
    (left,) = await sessions(api, ada)
    assert left["is_current"]
    answer = await api.http.delete(f"/auth/sessions/{id_}", headers=ada.auth)
    assert_problem(answer, 404, "session_not_found")


async def test_of_many_sessions_a_thousand_are_shown(
    service: Running, api: Api, ada: Account
) -> None:
    await add_sessions(service, ada.id, MOST_LISTED, lasting=60)
    assert len(await sessions(api, ada)) == MOST_LISTED == 1_000


async def add_sessions(
    service: Running, user_id: int, number: int, *, lasting: float
) -> None:
    """So many sessions more, which last so many seconds."""
    row = {"user_id": user_id, "expires_at": db_after(lasting)}
    async with service.service(Database).transaction() as session:
        rows = [{"id": uuid.uuid4()} for _ in range(number)]
        await session.execute(insert(SessionRow).values(row), rows)


async def count(service: Running, user_id: int) -> tuple[int, int]:
    """How many sessions and refresh tokens are kept of somebody."""
    mine = select(SessionRow.id).where(SessionRow.user_id == user_id)
    tokens = RefreshTokenRow.session_id.in_(mine)
    async with service.service(Database).reading() as session:
        kept = await session.scalar(select(func.count()).select_from(mine.subquery()))
        of = select(func.count()).select_from(RefreshTokenRow).where(tokens)
        return kept or 0, await session.scalar(of) or 0


async def test_sessions_that_ended_long_ago_are_swept_with_their_tokens(
    service: Running, api: Api, ada: Account
) -> None:
    day = 24 * 60 * 60
    other = await api.signed_in(ada.id, ada.username)
    await post(api, "/auth/logout", other)
    for ended_days_ago, kept in ((29, 2), (31, 1)):
        moved = update(SessionRow).where(
            SessionRow.user_id == ada.id, SessionRow.revoked_at.is_not(None)
        )
        async with service.service(Database).transaction() as session:
            ended = db_after(-ended_days_ago * day)
            await session.execute(moved.values(expires_at=ended))
        await service.service(Sessions).sweep()
        assert await count(service, ada.id) == (kept, kept)
    assert (await api.get("/users/me", ada)).status_code == 200


async def test_all_that_ended_long_ago_is_swept_however_much_it_is(
    service: Running, api: Api, ada: Account
) -> None:
    await add_sessions(service, ada.id, 1_001, lasting=-31 * 24 * 60 * 60)
    await service.service(Sessions).sweep()
    assert await count(service, ada.id) == (1, 1)


@pytest.mark.slow
async def test_a_server_sweeps_by_itself(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url)
    async with served(file) as (service, api):
        ada = await api.account()
        await add_sessions(service, ada.id, 2, lasting=-31 * 24 * 60 * 60)
        tried = {"failures": 1, "window_ends_at": db_after(-1)}
        tried |= {"key_hash": "0" * 64, "blocked_until": db_after(-1)}
        async with service.service(Database).transaction() as session:
            await session.execute(insert(AttemptsRow).values(tried))
    async with served(file) as (service, _):
        async with asyncio.timeout(60):
            while await count(service, ada.id) != (1, 1) or await is_tried(service):
                await asyncio.sleep(0.01)


async def is_tried(service: Running) -> bool:
    old = select(AttemptsRow.failures).where(AttemptsRow.key_hash == "0" * 64)
    async with service.service(Database).reading() as session:
        return await session.scalar(old) is not None


async def test_A24_a_deleted_account_leaves_no_session_and_no_token(
    service: Running, api: Api, ada: Account
) -> None:
    await api.refresh(ada.refresh_token)
    assert await count(service, ada.id) == (1, 2)
    gone = await api.http.delete("/users/me", headers=ada.auth)
    assert gone.status_code == 204
    assert await count(service, ada.id) == (0, 0)
    await assert_over(api, ada)
