"""Signing in with the OAuth2 password form (T01 to T07)."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from core.db import Database
from core.testing import Running
from tests.conftest import Databases, Recorder, connected, served
from tests.support.api import CANARY, PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.hashing import Work
from tests.support.raw import exchange, request

FORM = "application/x-www-form-urlencoded"


async def post(api: Api, body: bytes | str, content_type: str = FORM) -> httpx.Response:
    return await api.http.post(
        "/auth/token", content=body, headers={"Content-Type": content_type}
    )


async def test_T01_only_a_plain_form_is_accepted(api: Api, ada: Account) -> None:
    fields = {"username": ada.username, "password": PASSWORD, "grant_type": "password"}
    as_json = await api.http.post("/auth/token", json=fields)
    as_parts = await api.http.post(
        "/auth/token", data=fields, files={"password": (CANARY, CANARY.encode())}
    )
    as_text = await post(api, json.dumps(fields), "text/plain")
    in_latin_1 = await post(api, "username=x", f"{FORM}; charset=latin-1")
    for answer in (as_json, as_parts, as_text, in_latin_1):
        assert_problem(answer, 415, "unsupported_media_type")


async def test_T02_a_form_is_bounded(api: Api) -> None:
    head = request(
        "POST", "/auth/token", f"Content-Type: {FORM}", "Content-Length: 5000000"
    )
    reply = await exchange(api.url, head)
    assert (reply.status, reply.problem["code"]) == (413, "body_too_large")
    many = "&".join(f"{CANARY}{n}=1" for n in range(2_000))
    assert_problem(await post(api, many), 400, "malformed_body")
    long = await api.log_in("x" * 257, "x" * 129)
    problem = assert_problem(long, 422)
    assert {error["code"] for error in problem["errors"]} == {"too_long"}


@pytest.mark.parametrize("again", ["username", "user%6eame", "password", "grant_type"])
async def test_T03_a_field_given_twice_is_an_invalid_request(
    api: Api, ada: Account, again: str
) -> None:
    form = f"grant_type=password&username={ada.username}&password={PASSWORD}"
    answer = await post(api, f"{form}&{again}={CANARY}")
    problem = assert_problem(answer, 400, "invalid_request")
    assert problem["error"] == "invalid_request"


@pytest.mark.parametrize(
    "body", [b"username=%zz", b"username=%4", b"username=\xff", "username=я".encode()]
)
async def test_T03_a_form_that_is_not_encoded_is_malformed(
    api: Api, body: bytes
) -> None:
    answer = await post(api, body + b"&password=" + CANARY.encode())
    assert_problem(answer, 400, "malformed_body")


async def test_T03_a_semicolon_does_not_end_a_field(api: Api, ada: Account) -> None:
    name = f"{ada.username};username=x"
    form = f"grant_type=password&username={name}&password={PASSWORD}"
    assert_problem(await post(api, form), 401, "invalid_grant")


@pytest.mark.parametrize(
    "grant_type", [None, "", "PASSWORD", "client_credentials", CANARY, "x" * 1_000]
)
async def test_T04_another_grant_type_is_unsupported(
    api: Api, ada: Account, work: Work, grant_type: str | None
) -> None:
    form = {"username": ada.username, "password": PASSWORD}
    if grant_type is not None:
        form["grant_type"] = grant_type
    answer = await api.http.post("/auth/token", data=form)
    problem = assert_problem(answer, 400, "unsupported_grant_type")
    assert problem["error"] == "unsupported_grant_type"
    assert work.since_last_look() == (0, 0)


async def test_T04_scopes_and_client_credentials_are_ignored(
    api: Api, ada: Account
) -> None:
    more = {
        "scope": " ".join(["admin"] * 1_000),
        "client_id": "x",
        "client_secret": CANARY,
        "role": "admin",
    }
    granted = await api.log_in(ada.username, **more)
    assert granted.status_code == 200
    bearer = {"Authorization": f"Bearer {granted.json()['access_token']}"}
    assert_problem(await api.http.get("/users", headers=bearer), 403, "admins_only")


async def test_A10_T05_nobody_can_tell_why_they_were_refused(
    service: Running, api: Api, work: Work
) -> None:
    active, inactive, deleted = [await api.account() for _ in range(3)]
    await api.http.delete("/users/me", headers=deleted.auth)
    async with service.service(Database).transaction() as session:
        statement = text("UPDATE users SET is_active = false WHERE id = :id")
        await session.execute(statement, {"id": inactive.id})
    refusals = []
    work.since_last_look()
    for name, password in (
        ("nobody.here", PASSWORD),
        (active.username, f"{PASSWORD}!"),
        (inactive.username, PASSWORD),
        (inactive.username, f"{PASSWORD}!"),
        (deleted.username, PASSWORD),
        ("\U0001f600 no name at all", PASSWORD),
    ):
        answer = await api.log_in(name, password)
        problem = assert_problem(answer, 401, "invalid_grant")
        assert problem["error"] == "invalid_grant"
        refusals.append(_without_identity(answer, problem))
        assert work.since_last_look() == (0, 1)
    assert refusals == [refusals[0]] * len(refusals)


def _without_identity(
    answer: httpx.Response, problem: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    headers = dict(answer.headers)
    del headers["date"], headers["x-request-id"]
    del problem["request_id"], problem["instance"]
    return headers, problem


async def test_T05_an_account_that_is_not_active_is_nobody_at_once(
    service: Running, api: Api, ada: Account
) -> None:
    async with service.service(Database).transaction() as session:
        statement = text("UPDATE users SET is_active = false WHERE id = :id")
        await session.execute(statement, {"id": ada.id})
    assert_problem(await api.get("/users/me", ada), 401, "invalid_token")


async def test_T06_a_token_is_not_to_be_kept_by_anybody_between(
    api: Api, ada: Account
) -> None:
    answer = await api.log_in(ada.username.upper())
    assert answer.status_code == 200
    granted = answer.json()
    assert granted.keys() == {
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
    }
    assert (granted["token_type"], granted["expires_in"]) == ("bearer", 900)
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers


async def test_T07_credentials_in_a_query_are_not_looked_at_and_not_logged(
    api: Api, ada: Account, secrets_stay_inside: Recorder
) -> None:
    seen = len(secrets_stay_inside.lines)
    query = {"username": ada.username, "password": PASSWORD, "grant_type": "password"}
    refused = await api.http.post("/auth/token", params=query)
    problem = assert_problem(refused, 422)
    assert {error["code"] for error in problem["errors"]} == {"required"}
    asked = await api.get("/users/me", access_token=ada.token, token=ada.token)
    assert_problem(asked, 401, "token_missing")
    lines = secrets_stay_inside.lines[seen:]
    for answer, route in ((refused, "/auth/token"), (asked, "/users/me")):
        request_id = answer.headers["x-request-id"]
        assert any(request_id in line and route in line for line in lines)
    for secret in (PASSWORD, ada.token, ada.username, "access_token"):
        assert not any(secret in line for line in lines)


async def test_A09_a_flood_of_logins_leaves_connections_to_everybody_else(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("postgresql")
    few = "pool_size = 3\npool_wait_seconds = 0.5"
    one = "hash_threads = 1"
    file = write_config(tmp_path / "app.toml", url, auth=one, database=few)
    stuck = text(
        "SELECT count(*), pg_stat_clear_snapshot() FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with served(file) as (_, api), connected(url) as database:
        ada = await api.account()
        async with database.transaction() as session:
            # Nothing can be counted: each login stays where it is, with a connection.
            await session.execute(text("LOCK TABLE auth_login_attempts"))
            flood = [
                asyncio.create_task(api.log_in(f"nobody{n}", "wrong"))
                for n in range(20)
            ]
            while (await session.scalar(stuck) or 0) < 2:
                await asyncio.sleep(0.01)
            assert (await api.get("/users/me", ada)).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*flood)} == {401}


async def test_A09_C7_a_flood_of_logins_is_bounded_and_stops_nobody_else(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    narrow = "hash_threads = 1\nhash_queue = 2\nlogin_attempts = 0"
    file = write_config(tmp_path / "app.toml", url, auth=narrow)
    async with served(file) as (_, api):
        ada = await api.account()
        flood = [asyncio.create_task(api.log_in(ada.username)) for _ in range(20)]
        assert (await api.get("/users/me", ada)).status_code == 200
        answers = await asyncio.gather(*flood)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 20
        for answer in refused:
            assert_problem(answer, 503, "busy")
            assert answer.headers["retry-after"] == "1"
        assert (await api.log_in(ada.username)).status_code == 200
