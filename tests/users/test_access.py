"""Who gets at whose data, and that nobody rises (A4, A5, Q02)."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from core.db import Database
from core.testing import Running
from modules.auth.accounts import Accounts
from modules.users.public import Role
from tests.conftest import make_admin
from tests.support.api import Account, Api, assert_problem
from tests.support.tokens import claims_of

Operation = tuple[str, str, dict[str, Any]]


async def operations(api: Api) -> list[Operation]:
    """Method, path and description of everything the document lists."""
    document = (await api.get("/openapi.json")).json()
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def codes(operation: dict[str, Any], status: str) -> set[str]:
    """The codes of the problems that are documented for a status."""
    told = operation["responses"].get(status, {"content": {}})["content"]
    return {code for media in told.values() for code in media["examples"]}


async def shut_out(service: Running, who: Account) -> Account:
    await service.service(Accounts).set_active(who.username, False)
    return who


async def gone(api: Api) -> Account:
    who = await api.account()
    assert (await api.http.delete("/users/me", headers=who.auth)).status_code == 204
    return who


@pytest.mark.slow
async def test_A04_no_protected_route_answers_whoever_is_nobody(
    service: Running, api: Api
) -> None:
    nobodies = [await gone(api), await shut_out(service, await api.account())]
    # Even of an administrator nothing is left.
    admin = await make_admin(service, api)
    await make_admin(service, api)
    assert (await api.http.delete("/users/me", headers=admin.auth)).status_code == 204
    nobodies += [admin, await shut_out(service, await make_admin(service, api))]
    protected = [each for each in await operations(api) if each[2]["security"]]
    assert len(protected) >= 13
    for method, path, _ in protected:
        for who in nobodies:
            answer = await api.http.request(method, path, json={}, headers=who.auth)
            assert_problem(answer, 401, "invalid_token")
        answer = await api.http.request(method, path, json={})
        assert_problem(answer, 401, "token_missing")


async def test_Q02_what_is_for_administrators_asks_for_one_on_every_request(
    service: Running, api: Api, ada: Account
) -> None:
    await make_admin(service, api)
    accounts = service.service(Accounts)
    guarded = [
        each for each in await operations(api) if "admins_only" in codes(each[2], "403")
    ]
    assert len(guarded) >= 5
    for role in (Role.USER, Role.ADMIN, Role.USER):
        await accounts.set_role(ada.username, role)
        for method, path, _ in guarded:
            answer = await api.http.request(method, path, json={}, headers=ada.auth)
            if role is Role.USER:
                assert_problem(answer, 403, "admins_only")
            else:
                # An administrator is let in, and told that `{user_id}` is no number.
                assert answer.status_code in (200, 422), answer.text


NOBODY, USER, OWNER, ADMIN = range(4)
MATRIX = {
    ("GET", "/users"): (401, 403, 403, 200),
    ("GET", "/users/{ada}"): (401, 403, 403, 200),
    ("PATCH", "/users/{ada}"): (401, 403, 403, 200),
    ("GET", "/questions"): (401, 403, 403, 200),
    ("GET", "/questions/{asked}"): (401, 404, 200, 200),
    ("GET", "/questions/me"): (401, 200, 200, 200),
    ("GET", "/questions/limits"): (401, 200, 200, 200),
    ("GET", "/users/me"): (401, 200, 200, 200),
    ("PATCH", "/users/me"): (401, 200, 200, 200),
    # Last: there is no question after that.
    ("DELETE", "/questions/{asked}"): (401, 404, 204, 404),
}
NOT_ADAS = {
    ("GET", "/questions/limits"),
    ("GET", "/questions/me"),
    ("GET", "/users/me"),
    ("PATCH", "/users/me"),
    ("DELETE", "/questions/{asked}"),
}


@pytest.mark.parametrize("actor", ["nobody", "user", "owner", "admin"])
async def test_A04_nobody_is_shown_what_is_somebody_else_s(
    api: Api, admin: Account, ada: Account, actor: str
) -> None:
    """Each actor asks for each object of Ada's."""
    bob, secret = await api.account(), f"Whose are you, {ada.username}?"
    asked = (await api.ask(ada, secret)).json()["id"]
    index = ("nobody", "user", "owner", "admin").index(actor)
    who = (None, bob, ada, admin)[index]
    ids = {"ada": ada.id, "asked": asked}
    for (method, path), expected in MATRIX.items():
        answer = await api.http.request(
            method,
            path.format_map(ids),
            json={} if method == "PATCH" else None,
            headers=who.auth if who else {},
        )
        assert answer.status_code == expected[index], (method, path)
        is_theirs = index == OWNER and expected[OWNER] == 200
        if index != ADMIN and not is_theirs:
            assert ada.username not in answer.text
        if index == ADMIN and (method, path) in NOT_ADAS:
            assert ada.username not in answer.text
        if index == ADMIN and (method, path) not in NOT_ADAS:
            assert ada.username in answer.text


RISING: tuple[dict[str, Any], ...] = (
    {"role": "admin"},
    {"role": ["admin"]},
    {"role": {"value": "admin"}},
    {"Role": "admin"},
    {"is_admin": True},
    {"isAdmin": "true"},
    {"admin": 1},
    {"scope": "admin"},
    {"scopes": ["admin"]},
    {"is_active": True},
    {"is_superuser": True},
    {"user": {"role": "admin"}},
    {"__proto__": {"role": "admin"}},
)


def example(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """What a route takes, as its own document shows it."""
    name = schema["$ref"].rpartition("/")[2]
    found = document["components"]["schemas"][name]
    if "examples" in found:
        shown: dict[str, Any] = found["examples"][0]
        return shown
    return {
        field: told["examples"][0]
        for field, told in found.get("properties", {}).items()
        if "examples" in told
    }


def attempts(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[Any]:
    """What to send to an operation: each time with one more way to ask for more."""
    sent = operation.get("requestBody", {"content": {"application/json": None}})
    ((media, told),) = sent["content"].items()
    right = example(told["schema"], document) if told else {}
    kind = "json" if media == "application/json" else "data"
    for more in RISING:
        if "username" in right:
            right["username"] = f"u{uuid.uuid4().hex[:12]}"
        yield {kind: right | more}
        yield {kind: right, "params": {name: str(more[name]) for name in more}}


async def administrators(service: Running) -> set[int]:
    async with service.service(Database).reading() as session:
        found = await session.scalars(text("SELECT id FROM users WHERE role <> 'user'"))
        return set(found)


@pytest.mark.slow
async def test_A05_nobody_becomes_an_administrator_by_anything_that_is_sent(
    service: Running, api: Api, admin: Account
) -> None:
    before = await administrators(service)
    document = (await api.get("/openapi.json")).json()
    writing = [each for each in await operations(api) if each[0] != "GET"]
    assert len(writing) >= 8
    for method, path, operation in writing:
        ada = await api.account()
        # An administrator who leaves is one no more, or signed out, and that is right.
        leaves = method == "DELETE" or path.startswith("/auth/logout")
        for sent in attempts(operation, document):
            if leaves:
                ada = await api.account()
            for who in [ada] if leaves else [ada, admin]:
                target = path.replace("{user_id}", str(ada.id))
                own = claims_of(ada)["sid"]
                target = target.replace("{session_id}", own)
                if "{question_id}" in target:
                    asked = (await api.ask(ada, "Mine?")).json()["id"]
                    target = target.replace("{question_id}", str(asked))
                answer = await api.http.request(
                    method, target, headers=who.auth, **sent
                )
                is_state = path == "/users/{user_id}" and who is admin
                if "json" in sent and "params" not in sent and not is_state:
                    is_read = "requestBody" in operation
                    assert answer.is_success is not is_read, (method, path, sent)
                assert answer.status_code < 500, answer.text
        assert await administrators(service) == before, (method, path)
