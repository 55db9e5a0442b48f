"""Refreshing: each token is good once, and a copy ends the session (A8, C4, T06)."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from core.db import Database, db_after
from core.testing import Running
from modules.auth.models import RefreshTokenRow, SessionRow
from tests.conftest import Databases, served
from tests.support.api import CANARY, Account, Api, assert_problem
from tests.support.config import write_config

GRANTED = {"access_token", "token_type", "expires_in", "refresh_token"}


async def me(api: Api, access_token: str) -> int:
    headers = {"Authorization": f"Bearer {access_token}"}
    return (await api.http.get("/users/me", headers=headers)).status_code


async def refreshed(api: Api, refresh_token: str) -> dict[str, Any]:
    answer = await api.refresh(refresh_token)
    assert answer.status_code == 200, answer.text
    granted: dict[str, Any] = answer.json()
    return granted


async def assert_refused(api: Api, refresh_token: str) -> None:
    problem = assert_problem(await api.refresh(refresh_token), 401, "invalid_grant")
    assert problem["error"] == "invalid_grant"
    assert refresh_token not in str(problem)


async def age(service: Running, user_id: int, **columns: float) -> None:
    """Move columns of somebody's sessions to so many seconds from now."""
    moved = {name: db_after(seconds) for name, seconds in columns.items()}
    statement = update(SessionRow).where(SessionRow.user_id == user_id).values(moved)
    async with service.service(Database).transaction() as session:
        await session.execute(statement)


async def end_the_grace(service: Running) -> None:
    """Let every token that was used have been used for longer than the grace lasts."""
    used = update(RefreshTokenRow).where(RefreshTokenRow.used_at.is_not(None))
    async with service.service(Database).transaction() as session:
        await session.execute(used.values(used_at=db_after(-11)))


async def test_T06_a_refresh_gives_both_tokens_anew_and_nobody_keeps_them(
    api: Api, ada: Account
) -> None:
    answer = await api.refresh(ada.refresh_token)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    granted = answer.json()
    assert granted.keys() == GRANTED
    assert (granted["token_type"], granted["expires_in"]) == ("bearer", 900)
    assert granted["refresh_token"] != ada.refresh_token
    assert await me(api, granted["access_token"]) == 200
    assert await me(api, ada.token) == 200


async def test_C4_a_refresh_token_is_256_random_bits_and_stored_as_a_hash_only(
    service: Running, api: Api, ada: Account
) -> None:
    prefix, _, random = ada.refresh_token.partition("_rt_")
    assert prefix == "vopros"
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", random)
    async with service.service(Database).reading() as session:
        stored = (await session.scalars(select(RefreshTokenRow.token_hash))).all()
    assert all(re.fullmatch(r"[0-9a-f]{64}", found) for found in stored)
    assert random not in str(stored)


async def test_A08_a_used_token_ends_the_whole_session_and_no_other(
    service: Running, api: Api, ada: Account
) -> None:
    other = await api.signed_in(ada.id, ada.username)
    granted = await refreshed(api, ada.refresh_token)
    await end_the_grace(service)
    await assert_refused(api, ada.refresh_token)
    # Committed, although the request that noticed it was refused.
    await assert_refused(api, granted["refresh_token"])
    assert await me(api, granted["access_token"]) == 401
    assert await me(api, ada.token) == 401
    assert await me(api, other.token) == 200
    await refreshed(api, other.refresh_token)


async def test_A08_the_grandparent_of_a_token_ends_the_session(
    api: Api, ada: Account
) -> None:
    token, used = ada.refresh_token, []
    for _ in range(3):
        used.append(token)
        token = (await refreshed(api, token))["refresh_token"]
    await assert_refused(api, used[0])
    await assert_refused(api, token)


@pytest.mark.slow
async def test_F37_without_a_grace_one_refresh_of_many_wins_and_all_is_over(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url, auth="refresh_grace_seconds = 0")
    async with served(file) as (_, api):
        ada = await api.account()
        refreshing = [api.refresh(ada.refresh_token) for _ in range(20)]
        answers = await asyncio.gather(*refreshing)
        (won,) = (answer.json() for answer in answers if answer.status_code == 200)
        for answer in answers:
            if answer.status_code != 200:
                assert_problem(answer, 401, "invalid_grant")
        assert await me(api, won["access_token"]) == 401
        await assert_refused(api, won["refresh_token"])


async def test_F37_in_the_grace_the_token_just_replaced_is_good_once_more(
    service: Running, api: Api, ada: Account
) -> None:
    """As shipped: two tabs, or a lost response, log nobody out."""
    lost = await refreshed(api, ada.refresh_token)
    again = await refreshed(api, ada.refresh_token)
    newest = await refreshed(api, again["refresh_token"])
    assert await me(api, newest["access_token"]) == 200
    assert await me(api, lost["access_token"]) == 200
    # Not the newest one's predecessor any more: a grandparent.
    await assert_refused(api, ada.refresh_token)
    await assert_refused(api, newest["refresh_token"])
    assert await me(api, newest["access_token"]) == 401

    bob = await api.account()
    await refreshed(api, bob.refresh_token)
    await end_the_grace(service)
    await assert_refused(api, bob.refresh_token)
    assert await me(api, bob.token) == 401


async def test_a_session_ends_that_is_not_refreshed_and_lasts_as_long_as_it_is(
    service: Running, api: Api, ada: Account
) -> None:
    await age(service, ada.id, expires_at=60)
    granted = await refreshed(api, ada.refresh_token)
    (shown,) = (await api.get("/auth/sessions", ada)).json()
    assert shown["last_used_at"] > shown["created_at"]
    assert shown["expires_at"][:10] > shown["created_at"][:10]
    await age(service, ada.id, expires_at=-1)
    await assert_refused(api, granted["refresh_token"])
    assert await me(api, granted["access_token"]) == 401


async def test_C4_a_session_ends_for_good_however_often_it_is_refreshed(
    service: Running, api: Api, ada: Account
) -> None:
    day = 24 * 60 * 60
    await age(service, ada.id, created_at=-89 * day)
    granted = await refreshed(api, ada.refresh_token)
    async with service.service(Database).reading() as session:
        one = select(SessionRow).where(SessionRow.user_id == ada.id)
        found = (await session.scalars(one)).one()
    assert (found.expires_at - found.created_at).days == 90
    await age(service, ada.id, created_at=-91 * day)
    await refreshed(api, granted["refresh_token"])
    assert await me(api, granted["access_token"]) == 401


async def lengths(service: Running, user_id: int) -> list[tuple[int, int]]:
    """Seconds from the last use, and from the login, to the end of each session."""
    mine = select(SessionRow).where(SessionRow.user_id == user_id)
    async with service.service(Database).reading() as session:
        found = (await session.scalars(mine)).all()
    return [
        (
            round((row.expires_at - row.last_used_at).total_seconds()),
            round((row.expires_at - row.created_at).total_seconds()),
        )
        for row in found
    ]


@pytest.mark.slow
async def test_C4_a_session_lasts_as_long_as_the_configuration_says(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    for idle, absolute in ((300, 900), (900, 300)):
        limits = f"session_idle_seconds = {idle}\nsession_absolute_seconds = {absolute}"
        file = write_config(tmp_path / "app.toml", url, auth=limits)
        async with served(file) as (service, api):
            ada = await api.account()
            ((_, whole),) = await lengths(service, ada.id)
            assert whole == 300
            await age(service, ada.id, created_at=-200)
            await refreshed(api, ada.refresh_token)
            ((rest, whole),) = await lengths(service, ada.id)
            assert (rest if idle < absolute else whole) == pytest.approx(300, abs=1)


async def test_an_inactive_account_refreshes_nothing(
    service: Running, api: Api, ada: Account
) -> None:
    for active, refuses in (("false", True), ("true", False)):
        bob = await api.account()
        statement = text(f"UPDATE users SET is_active = {active} WHERE id = :id")
        async with service.service(Database).transaction() as session:
            await session.execute(statement, {"id": bob.id})
        if refuses:
            await assert_refused(api, bob.refresh_token)
        else:
            await refreshed(api, bob.refresh_token)


@pytest.mark.parametrize(
    "token", ["", "x", f"vopros_rt_{CANARY}", "Ω" * 200, "vopros_rt_" + "A" * 43]
)
async def test_what_is_no_refresh_token_is_refused(api: Api, token: str) -> None:
    assert_problem(await api.refresh(token), 401, "invalid_grant")


async def test_J12_neither_token_is_good_in_the_place_of_the_other(
    api: Api, ada: Account
) -> None:
    await assert_refused(api, ada.token)
    assert await me(api, ada.refresh_token) == 401
    assert await me(api, ada.token) == 200
    await refreshed(api, ada.refresh_token)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"refresh_token": None}, 422),
        ({"refresh_token": 7}, 422),
        ({"refresh_token": CANARY * 40}, 422),
        ({"refresh_token": f"\0{CANARY}"}, 422),
        ({"refresh_token": f"\ud800{CANARY}"}, 422),
        ({"refresh_token": CANARY, "grant_type": "refresh_token"}, 422),
    ],
)
async def test_a_bad_body_is_a_precise_problem(
    api: Api, body: dict[str, Any], status: int
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.http.post(
        "/auth/refresh", content=json.dumps(body), headers=headers
    )
    assert_problem(answer, status)


async def test_what_was_never_a_token_waits_for_nobody_who_writes(
    service: Running, api: Api
) -> None:
    async with service.service(Database).transaction() as session:
        await session.execute(update(RefreshTokenRow).values(used_at=db_after(-60)))
        async with asyncio.timeout(3):
            await assert_refused(api, "vopros_rt_" + "B" * 43)
        await session.rollback()
