"""Shutting somebody out, and letting them in again (A7, I09)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from core.db import Database
from core.testing import Running
from modules.users.public import Users
from tests.conftest import Databases, make_admin, served
from tests.support.api import CANARY, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.upstream import Upstream

OUT, IN = {"is_active": False}, {"is_active": True}


async def change(api: Api, who: Account, user_id: int, body: Any) -> Response:
    return await api.http.patch(f"/users/{user_id}", json=body, headers=who.auth)


async def shut_out(api: Api, who: Account, user_id: int) -> None:
    answer = await change(api, who, user_id, OUT)
    assert (answer.status_code, answer.json()["is_active"]) == (200, False)


async def let_in(api: Api, who: Account, user_id: int) -> None:
    answer = await change(api, who, user_id, IN)
    assert (answer.status_code, answer.json()["is_active"]) == (200, True)


async def test_A07_who_is_shut_out_is_nobody_from_the_next_request_on(
    api: Api, admin: Account, ada: Account
) -> None:
    before = (await api.get(f"/users/{ada.id}", admin)).json()
    again = await api.signed_in(ada.id, ada.username)
    changed = await change(api, admin, ada.id, OUT)
    assert changed.json() == before | {"is_active": False}
    for who in (ada, again):
        assert_problem(await api.get("/users/me", who), 401, "invalid_token")
        assert_problem(await api.ask(who, "Still there?"), 401, "invalid_token")
    assert_problem(await api.log_in(ada.username), 401, "invalid_grant")
    assert (await api.get(f"/users/{ada.id}", admin)).json() == changed.json()


async def test_A07_who_is_let_in_again_finds_no_session_alive(
    api: Api, admin: Account, ada: Account
) -> None:
    bob = await api.account()
    await shut_out(api, admin, ada.id)
    await let_in(api, admin, ada.id)
    assert_problem(await api.get("/users/me", ada), 401, "invalid_token")
    back = await api.signed_in(ada.id, ada.username)
    assert (await api.get("/users/me", back)).status_code == 200
    # Letting in whoever is not out changes nothing either.
    await let_in(api, admin, ada.id)
    for who in (back, bob):
        assert (await api.get("/users/me", who)).status_code == 200


async def test_A07_no_login_of_that_moment_outlives_being_shut_out(
    api: Api, admin: Account, ada: Account
) -> None:
    shutting = asyncio.create_task(change(api, admin, ada.id, OUT))
    logins = await asyncio.gather(*[api.log_in(ada.username) for _ in range(20)])
    assert (await shutting).status_code == 200
    await let_in(api, admin, ada.id)
    for login in logins:
        if login.status_code == 200:
            bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
            answer = await api.http.get("/users/me", headers=bearer)
            assert_problem(answer, 401, "invalid_token")


async def test_A07_sessions_end_in_the_very_transaction_or_nothing_happens(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    async def fails(session: AsyncSession, user_id: int) -> None:
        raise RuntimeError

    url = await databases.migrated(database_kind)
    async with served(write_config(tmp_path / "app.toml", url)) as (service, api):
        admin, ada = await make_admin(service, api), await api.account()
        service.service(Users).when_deactivated(fails)
        assert_problem(await change(api, admin, ada.id, OUT), 500, "internal_error")
        assert (await api.get("/users/me", ada)).status_code == 200
        assert (await api.get(f"/users/{ada.id}", admin)).json()["is_active"] is True


async def test_a_question_of_who_is_shut_out_meanwhile_is_still_answered(
    api: Api, admin: Account, ada: Account, upstream: Upstream
) -> None:
    async with upstream.stalled() as release:
        asking = asyncio.create_task(api.ask(ada, "Why?"))
        await upstream.asked()
        await shut_out(api, admin, ada.id)
        assert not asking.done()
        release.set()
        answer = await asking
    assert (answer.status_code, answer.json()["status"]) == (201, "answered")
    kept = await api.get(f"/questions/{answer.json()['id']}", admin)
    assert kept.json() == answer.json()


async def test_an_empty_change_changes_nothing(
    api: Api, admin: Account, ada: Account
) -> None:
    for who in (ada, admin):
        before = (await api.get(f"/users/{who.id}", admin)).json()
        for body in ({}, {"is_active": None}, IN):
            answer = await change(api, admin, who.id, body)
            assert (answer.status_code, answer.json()) == (200, before)
    assert (await api.get("/users/me", ada)).status_code == 200


async def test_Q02_only_administrators_change_others_and_none_oneself(
    api: Api, admin: Account, ada: Account
) -> None:
    bob = await api.account()
    for user_id in (ada.id, bob.id, admin.id, 2**62):
        for body in (OUT, {}, {"role": "admin"}):
            refused = await change(api, ada, user_id, body)
            assert_problem(refused, 403, "admins_only")
    assert_problem(await api.http.patch(f"/users/{bob.id}", json=OUT), 401)
    for user_id in (2**62, 0, -1):
        for body in (OUT, IN, {}):
            refused = await change(api, admin, user_id, body)
            assert_problem(refused, 404, "user_not_found")
    assert_problem(await change(api, admin, admin.id, OUT), 409, "not_oneself")
    for who in (ada, bob, admin):
        assert (await api.get("/users/me", who)).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"role": "admin"},
        {"is_admin": True},
        {"username": "somebody.else"},
        {"password": CANARY},
        {"id": 1},
        {"created_at": "2026-11-23T00:00:00Z"},
    ],
    ids=str,
)
async def test_I09_nothing_but_the_state_can_be_changed(
    api: Api, admin: Account, ada: Account, more: dict[str, Any]
) -> None:
    for body in (more, OUT | more):
        problem = assert_problem(await change(api, admin, ada.id, body), 422)
        (name,) = more
        found = [(error["loc"], error["code"]) for error in problem["errors"]]
        assert found == [(["body", name], "unknown_field")]
    me = (await api.get("/users/me", ada)).json()
    assert (me["username"], me["role"]) == (ada.username, "user")


@pytest.mark.parametrize("value", ["false", 0, 1, "no", [], {}, CANARY], ids=repr)
async def test_I11_a_state_is_true_or_false(
    api: Api, admin: Account, ada: Account, value: Any
) -> None:
    answer = await change(api, admin, ada.id, {"is_active": value})
    problem = assert_problem(answer, 422)
    found = [(error["loc"], error["code"]) for error in problem["errors"]]
    assert found == [(["body", "is_active"], "not_true_or_false")]
    assert (await api.get("/users/me", ada)).status_code == 200


@pytest.mark.slow
async def test_an_administrator_who_is_out_does_not_count_as_one(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    async with served(write_config(tmp_path / "app.toml", url)) as (service, api):
        first, second = [await make_admin(service, api) for _ in range(2)]
        await shut_out(api, first, second.id)
        gone = await api.http.delete("/users/me", headers=first.auth)
        assert_problem(gone, 409, "last_admin")
        await let_in(api, first, second.id)
        gone = await api.http.delete("/users/me", headers=first.auth)
        assert gone.status_code == 204


@pytest.mark.slow
async def test_of_two_administrators_who_shut_each_other_out_one_stays(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    async with served(write_config(tmp_path / "app.toml", url)) as (service, api):
        pair = [await make_admin(service, api) for _ in range(2)]
        for _ in range(5):
            answers = await asyncio.gather(
                change(api, pair[0], pair[1].id, OUT),
                change(api, pair[1], pair[0].id, OUT),
            )
            codes = [answer.status_code for answer in answers]
            assert sorted(codes) in ([200, 401], [200, 409])
            stays, goes = pair if codes[0] == 200 else reversed(pair)
            assert (await api.get("/users", stays)).status_code == 200
            assert_problem(await api.get("/users", goes), 401, "invalid_token")
            await let_in(api, stays, goes.id)
            pair = [stays, await api.signed_in(goes.id, goes.username)]


async def test_the_last_administrator_stays_though_both_were_let_in_on_time(
    databases: Databases, tmp_path: Path
) -> None:
    """PostgreSQL alone lets two transactions write at a time."""
    url = await databases.migrated("postgresql")
    async with served(write_config(tmp_path / "app.toml", url)) as (service, api):
        pair = [await make_admin(service, api) for _ in range(2)]
        own = Database(service.service(Database).settings)
        async with own.transaction() as session:
            await session.execute(text("SELECT id FROM users FOR UPDATE"))
            changing = [
                asyncio.create_task(change(api, pair[0], pair[1].id, OUT)),
                asyncio.create_task(change(api, pair[1], pair[0].id, OUT)),
            ]
            await until_waiting(service, 2)
        await own.close()
        answers = await asyncio.gather(*changing)
        (refused,) = (answer for answer in answers if answer.status_code != 200)
        assert_problem(refused, 409, "last_admin")
        stays = pair[1 - answers.index(refused)]
        assert (await api.get("/users", stays)).status_code == 200


async def until_waiting(service: Running, count: int) -> None:
    """Return once so many connections wait for a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(60):
        while True:
            async with service.service(Database).reading() as session:
                if await session.scalar(waiting) == count:
                    return
            await asyncio.sleep(0.01)
