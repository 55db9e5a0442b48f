"""One's own account: renaming and leaving (Q04, Q05, F38)."""

import asyncio
import uuid
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import Connection, inspect, text

from core.db import Database
from core.security import InvalidToken
from core.testing import Running
from modules.users.service import StoredUsers
from tests.conftest import Databases, make_admin, served
from tests.support.api import CANARY, PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config

KEYS = {"id", "username", "role", "created_at"}


async def rename(api: Api, who: Account, body: Any) -> Response:
    return await api.http.patch("/users/me", json=body, headers=who.auth)


async def leave(api: Api, who: Account) -> Response:
    return await api.http.delete("/users/me", headers=who.auth)


def new_name() -> str:
    return f"n{uuid.uuid4().hex[:12]}"


async def test_Q03_one_sees_oneself_and_no_secret(api: Api, ada: Account) -> None:
    me = (await api.get("/users/me", ada)).json()
    assert me.keys() == KEYS
    assert (me["id"], me["username"], me["role"]) == (ada.id, ada.username, "user")


async def test_Q04_a_new_name_is_one_s_own_at_once(api: Api, ada: Account) -> None:
    name = new_name()
    changed = await rename(api, ada, {"username": name})
    assert changed.status_code == 200
    assert changed.json() == (await api.get("/users/me", ada)).json()
    assert (changed.json()["username"], changed.json()["id"]) == (name, ada.id)
    assert (await api.log_in(name)).status_code == 200
    assert_problem(await api.log_in(ada.username), 401)


async def test_Q04_an_empty_change_changes_nothing(api: Api, ada: Account) -> None:
    before = (await api.get("/users/me", ada)).json()
    for body in ({}, {"username": None}, {"username": ada.username}):
        answer = await rename(api, ada, body)
        assert (answer.status_code, answer.json()) == (200, before)


async def test_Q04_a_name_that_is_taken_is_taken_in_any_letter_case(
    api: Api, ada: Account
) -> None:
    bob = await api.account()
    for name in (bob.username, bob.username.upper(), bob.username.title()):
        answer = await rename(api, ada, {"username": name})
        assert_problem(answer, 409, "username_taken")
    assert (await api.get("/users/me", ada)).json()["username"] == ada.username


async def test_Q04_one_s_own_name_may_change_its_letter_case(
    api: Api, ada: Account
) -> None:
    answer = await rename(api, ada, {"username": ada.username.upper()})
    assert answer.json()["username"] == ada.username.upper()


@pytest.mark.parametrize(
    "more",
    [
        {"role": "admin"},
        {"is_admin": True},
        {"is_active": False},
        {"id": 1},
        {"password": CANARY},
        {"username_key": CANARY},
        {"created_at": "2026-11-23T00:00:00Z"},
    ],
    ids=str,
)
async def test_Q04_nothing_but_the_name_can_be_changed(
    api: Api, ada: Account, more: dict[str, Any]
) -> None:
    before = (await api.get("/users/me", ada)).json()
    problem = assert_problem(await rename(api, ada, {"username": "x1y", **more}), 422)
    assert [e["code"] for e in problem["errors"]] == ["unknown_field"]
    assert (await api.get("/users/me", ada)).json() == before


@pytest.mark.parametrize("name", ["", "ab", "admin", "a b", "a..b", "x" * 33, "123"])
async def test_Q04_a_new_name_keeps_the_rules_of_names(
    api: Api, ada: Account, name: str
) -> None:
    problem = assert_problem(await rename(api, ada, {"username": name}), 422)
    assert [e["loc"] for e in problem["errors"]] == [["body", "username"]]


@pytest.mark.slow
async def test_F38_the_last_of_many_changes_wins(api: Api, ada: Account) -> None:
    names = [new_name() for _ in range(20)]
    answers = await asyncio.gather(
        *[rename(api, ada, {"username": name}) for name in names]
    )
    assert [answer.status_code for answer in answers] == [200] * 20
    kept = (await api.get("/users/me", ada)).json()["username"]
    assert kept in names
    logins = await asyncio.gather(*[api.log_in(name) for name in names])
    assert [n for n, each in zip(names, logins, strict=True) if each.is_success] == [
        kept
    ]


async def test_F38_of_many_who_want_one_name_one_gets_it(api: Api) -> None:
    people = [await api.account() for _ in range(8)]
    name = new_name()
    answers = await asyncio.gather(
        *[rename(api, who, {"username": name}) for who in people]
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7


async def test_an_account_that_goes_meanwhile_is_nobody_s(service: Running) -> None:
    users: StoredUsers = service.service(StoredUsers)
    with pytest.raises(InvalidToken):
        await users.own(2**40)
    with pytest.raises(InvalidToken):
        await users.rename(2**40, new_name())


async def test_Q05_A24_who_leaves_is_gone_with_everything(
    service: Running, api: Api, ada: Account, admin: Account
) -> None:
    asked = (await api.ask(ada, "Who am I?")).json()
    gone = await leave(api, ada)
    assert (gone.status_code, gone.content) == (204, b"")
    assert_problem(await leave(api, ada), 401, "invalid_token")
    assert_problem(await api.get("/users/me", ada), 401, "invalid_token")
    assert_problem(await api.log_in(ada.username), 401, "invalid_grant")
    assert_problem(await api.get(f"/users/{ada.id}", admin), 404, "user_not_found")
    assert_problem(await api.get(f"/questions/{asked['id']}", admin), 404)
    async with service.service(Database).reading() as session:
        connection = await session.connection()
        kept = await connection.run_sync(_tables_about_people)
        assert kept >= {"auth_credentials", "auth_sessions", "questions"}
        for table in kept:
            counted = text(f"SELECT count(*) FROM {table} WHERE user_id = :id")
            assert await session.scalar(counted, {"id": ada.id}) == 0


def _tables_about_people(connection: Connection) -> set[str]:
    """Whatever a module keeps of a user, those of tomorrow too."""
    found = inspect(connection)
    return {
        name
        for name in found.get_table_names()
        for column in found.get_columns(name)
        if column["name"] == "user_id"
    }


async def test_Q05_a_name_that_is_free_again_means_another_account(
    api: Api, ada: Account
) -> None:
    await leave(api, ada)
    again = await api.account(ada.username)
    assert again.id > ada.id
    assert_problem(await api.get("/users/me", ada), 401, "invalid_token")
    assert await api.newest(again) == []


async def test_Q05_leaving_twice_at_once_is_leaving(api: Api, ada: Account) -> None:
    answers = await asyncio.gather(*[leave(api, ada) for _ in range(5)])
    codes = {answer.status_code for answer in answers}
    assert 204 in codes and codes <= {204, 401}


async def test_Q05_the_last_administrator_cannot_leave(
    databases: Databases, database_kind: str, tmp_path_factory: Any
) -> None:
    url = await databases.migrated(database_kind)
    folder = tmp_path_factory.mktemp("admins")
    async with served(write_config(folder / "app.toml", url)) as (service, api):
        first = await make_admin(service, api)
        assert_problem(await leave(api, first), 409, "last_admin")
        ada = await api.account()
        assert (await leave(api, ada)).status_code == 204
        await make_admin(service, api)
        assert (await leave(api, first)).status_code == 204


async def test_Q05_of_two_administrators_who_leave_at_once_one_stays(
    databases: Databases, database_kind: str, tmp_path_factory: Any
) -> None:
    url = await databases.migrated(database_kind)
    folder = tmp_path_factory.mktemp("admins")
    async with served(write_config(folder / "app.toml", url)) as (service, api):
        left = await make_admin(service, api)
        for _ in range(5):
            pair = (left, await make_admin(service, api))
            answers = await asyncio.gather(*[leave(api, who) for who in pair])
            codes = [answer.status_code for answer in answers]
            assert sorted(codes) == [204, 409]
            left = pair[codes.index(409)]
            assert (await api.get("/users", left)).json()["items"][0]["id"] == left.id
        assert left.password == PASSWORD
