"""What administrators see of people and their questions, and nobody else does."""

import uuid
from typing import Any

import pytest

from core.testing import Running
from modules.auth.accounts import Accounts
from modules.users.public import Role
from tests.conftest import make_admin
from tests.support.api import Account, Api, assert_problem
from tests.support.upstream import Received, Upstream, Wire

USER = {"id", "username", "role", "created_at", "is_active"}
QUESTION = {
    *("id", "user_id", "username", "content", "status", "answer", "provider", "model"),
    *("usage", "finish_reason", "error_code", "attempts", "asked_at", "answered_at"),
}
ADMINS_ONLY = ("/users", "/users/1", "/questions", "/users?limit=0", "/users/x")


async def items(api: Api, who: Account, path: str, **query: Any) -> list[Any]:
    """Every item of a list, page by page, as a client reads it."""
    found: list[Any] = []
    while True:
        answer = await api.get(path, who, **query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page.keys() == {"items", "next_cursor"}
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        assert page["items"]
        query["cursor"] = page["next_cursor"]


@pytest.fixture
async def prefix(api: Api) -> str:
    """The beginning of four people's names, in different letter case."""
    start = f"P{uuid.uuid4().hex[:8]}"
    for name in (f"{start}.one", f"{start.lower()}.TWO", f"{start}_x", f"{start}.x"):
        await api.account(name)
    return start


@pytest.mark.parametrize("path", ADMINS_ONLY)
async def test_Q02_what_is_for_administrators_is_for_nobody_else(
    api: Api, ada: Account, path: str
) -> None:
    assert_problem(await api.get(path, ada), 403, "admins_only")
    assert_problem(await api.get(path), 401, "token_missing")


async def test_Q02_who_is_no_administrator_any_more_sees_nothing_more(
    service: Running, api: Api, admin: Account
) -> None:
    await make_admin(service, api)
    assert (await api.get("/users", admin)).status_code == 200
    await service.service(Accounts).set_role(admin.username, Role.USER)
    assert_problem(await api.get("/users", admin), 403, "admins_only")
    await service.service(Accounts).set_role(admin.username, Role.ADMIN)
    assert (await api.http.delete("/users/me", headers=admin.auth)).status_code == 204
    assert_problem(await api.get("/users", admin), 401, "invalid_token")


async def test_Q03_an_administrator_sees_a_user_and_no_secret(
    api: Api, admin: Account, ada: Account
) -> None:
    one = (await api.get(f"/users/{ada.id}", admin)).json()
    me = (await api.get("/users/me", ada)).json()
    assert one.keys() == USER
    assert one == me | {"is_active": True}
    (listed,) = await items(api, admin, "/users", name=ada.username)
    assert listed == one
    assert_problem(await api.get(f"/users/{2**62}", admin), 404, "user_not_found")


async def test_Q03_users_come_newest_first_in_pages_without_gaps(
    api: Api, admin: Account, prefix: str
) -> None:
    whole = await items(api, admin, "/users", name=prefix)
    assert len(whole) == 4
    assert [user["id"] for user in whole] == sorted(
        (user["id"] for user in whole), reverse=True
    )
    for limit in (1, 2, 3, 4, 100):
        paged = await items(api, admin, "/users", name=prefix, limit=limit)
        assert paged == whole


async def test_Q03_who_comes_meanwhile_moves_no_page(
    api: Api, admin: Account, prefix: str
) -> None:
    whole = await items(api, admin, "/users", name=prefix)
    first = (await api.get("/users", admin, name=prefix, limit=2)).json()
    await api.account(f"{prefix}.new")
    rest = await items(
        api, admin, "/users", name=prefix, limit=2, cursor=first["next_cursor"]
    )
    assert first["items"] + rest == whole


async def test_Q03_users_are_found_by_how_their_name_begins(
    api: Api, admin: Account, prefix: str
) -> None:
    for name, count in (
        (prefix, 4),
        (prefix.upper(), 4),
        (f"{prefix}.", 3),
        (f"{prefix}_", 1),
        (f"{prefix}.tWo", 1),
        (f"{prefix}%", 0),
        (f"{prefix}/", 0),
        (f"{prefix}\\", 0),
        ("'; DROP TABLE users; --", 0),
    ):
        assert len(await items(api, admin, "/users", name=name)) == count
    for name in ("x" * 33, "nul\x00"):
        assert_problem(await api.get("/users", admin, name=name), 422)


async def test_Q03_users_are_found_by_their_role(
    service: Running, api: Api, admin: Account, prefix: str
) -> None:
    await service.service(Accounts).set_role(f"{prefix}.one", Role.ADMIN)
    (one,) = await items(api, admin, "/users", name=prefix, role="admin")
    assert (one["username"], one["role"]) == (f"{prefix}.one", "admin")
    assert len(await items(api, admin, "/users", name=prefix, role="user")) == 3
    for role in ("root", "", "ADMIN"):
        problem = assert_problem(await api.get("/users", admin, role=role), 422)
        assert [error["loc"] for error in problem["errors"]] == [["query", "role"]]


async def test_Q01_a_question_of_somebody_else_is_no_question(
    api: Api, admin: Account, ada: Account
) -> None:
    bob = await api.account()
    asked = (await api.ask(ada, "Mine?")).json()
    foreign = assert_problem(
        await api.get(f"/questions/{asked['id']}", bob), 404, "question_not_found"
    )
    missing = assert_problem(await api.get("/questions/999999999", bob), 404)
    for problem in (foreign, missing):
        del problem["request_id"], problem["instance"]
    assert foreign == missing
    for who in (ada, admin):
        assert (await api.get(f"/questions/{asked['id']}", who)).json() == asked
    refused = await api.http.delete(f"/questions/{asked['id']}", headers=bob.auth)
    assert_problem(refused, 404, "question_not_found")


async def test_questions_come_newest_first_in_pages_with_who_asked(
    api: Api, admin: Account, ada: Account
) -> None:
    asked = [(await api.ask(ada, f"Question {n}?")).json() for n in range(5)]
    whole = await items(api, admin, "/questions", user_id=ada.id)
    assert all(item.keys() == QUESTION for item in whole)
    assert whole == [each | {"username": ada.username} for each in reversed(asked)]
    for limit in (1, 2, 5, 6):
        found = await items(api, admin, "/questions", user_id=ada.id, limit=limit)
        assert found == whole


async def test_questions_are_found_by_who_asked_their_state_and_time(
    api: Api, upstream: Upstream, admin: Account, ada: Account
) -> None:
    async def refuses(wire: Wire, received: Received) -> None:
        await wire.respond({"error": "no"}, status="400 Bad Request")

    bob = await api.account()
    first = (await api.ask(ada, "First?")).json()
    async with upstream.behaving(refuses):
        failed = assert_problem(await api.ask(ada, "Second?"), 422)["question_id"]
    third = (await api.ask(ada, "Third?")).json()
    await api.ask(bob, "Mine?")

    async def ids(**query: Any) -> list[int]:
        found = await items(api, admin, "/questions", user_id=ada.id, **query)
        return [question["id"] for question in found]

    assert await ids() == [third["id"], failed, first["id"]]
    assert await ids(status="answered") == [third["id"], first["id"]]
    assert await ids(status="failed") == [failed]
    assert await ids(status="pending") == await ids(status="interrupted") == []
    assert await ids(asked_from=third["asked_at"]) == [third["id"]]
    assert await ids(asked_before=third["asked_at"]) == [failed, first["id"]]
    between = {"asked_from": first["asked_at"], "asked_before": third["asked_at"]}
    assert await ids(**between) == [failed, first["id"]]
    assert await ids(**between, status="failed", limit=1) == [failed]
    assert await ids(asked_from="2999-01-01T00:00:00+02:00") == []
    for status in ("done", "", "ANSWERED"):
        problem = assert_problem(await api.get("/questions", admin, status=status), 422)
        assert [error["loc"] for error in problem["errors"]] == [["query", "status"]]
    assert await items(api, admin, "/questions", user_id=2**62) == []
