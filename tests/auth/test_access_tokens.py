"""Access tokens that are not what they say (J01 to J18)."""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from core.db import Database, db_now
from core.errors import StartRefused
from core.testing import Running, running
from modules.auth.accounts import Accounts
from modules.auth.models import SessionRow
from modules.users.public import Role
from tests.conftest import Databases, make_admin, served
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import SECRET, write_config
from tests.support.raw import exchange, request
from tests.support.tokens import (
    HEADER,
    KID,
    claims_of,
    derived_kid,
    header_of,
    sign,
)


async def call(api: Api, token: str | bytes) -> httpx.Response:
    given = token.encode() if isinstance(token, str) else token
    return await api.http.get(
        "/users/me", headers=[(b"Authorization", b"Bearer " + given)]
    )


async def assert_refused(api: Api, token: str | bytes) -> None:
    answer = await call(api, token)
    assert_problem(answer, 401, "invalid_token")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def assert_accepted(api: Api, token: str) -> None:
    answer = await call(api, token)
    assert answer.status_code == 200, answer.text


async def test_C1_a_token_says_who_and_for_how_long_and_nothing_else(
    api: Api, somebody: Account
) -> None:
    claims = claims_of(somebody)
    assert header_of(somebody) == HEADER
    assert claims.keys() == {"iss", "aud", "sub", "sid", "jti", "iat", "exp"}
    assert (claims["sub"], claims["exp"] - claims["iat"]) == (str(somebody.id), 900)
    await assert_accepted(api, sign(claims))


async def test_J01_without_a_token_nobody_is_known(api: Api) -> None:
    for headers in ([], ["Authorization:"], ["Authorization:  "]):
        reply = await exchange(api.url, request("GET", "/users/me", *headers))
        assert (reply.status, reply.problem["code"]) == (401, "token_missing")
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "value",
    [
        *("Bearer", "Basic YWRhOmFkYQ==", "Token {}", "{}", "Bearer{}"),
        *("Bearer {} {}", "Bearer {},", "Bearer Bearer {}", "Basic {}", 'Bearer "{}"'),
    ],
)
async def test_J01_another_authorization_is_not_valid(
    api: Api, somebody: Account, value: str
) -> None:
    headers = {"Authorization": value.replace("{}", somebody.token)}
    answer = await api.http.get("/users/me", headers=headers)
    assert_problem(answer, 401, "invalid_token")


async def test_J01_two_authorizations_are_not_valid(
    api: Api, somebody: Account
) -> None:
    right = ("Authorization", f"Bearer {somebody.token}")
    for other in (right, ("Authorization", "Basic x"), ("Authorization", "")):
        for headers in ([right, other], [other, right]):
            answer = await api.http.get("/users/me", headers=headers)
            assert_problem(answer, 401, "invalid_token")


async def test_J01_the_scheme_is_spelt_as_anybody_likes(
    api: Api, somebody: Account
) -> None:
    for scheme in ("bearer", "BEARER", "Bearer "):
        headers = {"Authorization": f"{scheme} {somebody.token}"}
        assert (await api.http.get("/users/me", headers=headers)).status_code == 200


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", "RS256", "ES256"])
async def test_J02_another_algorithm_is_not_valid(
    api: Api, somebody: Account, algorithm: str
) -> None:
    token = sign(claims_of(somebody), HEADER | {"alg": algorithm})
    await assert_refused(api, token)
    await assert_refused(api, token.rpartition(".")[0] + ".")
    await assert_refused(api, token.rpartition(".")[0])


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_J02_C2_another_digest_is_not_valid_though_signed_with_our_secret(
    api: Api, somebody: Account, algorithm: str
) -> None:
    digest = algorithm.replace("HS", "sha")
    header = HEADER | {"alg": algorithm}
    await assert_refused(api, sign(claims_of(somebody), header, digest=digest))


async def test_J03_a_public_key_is_no_secret(api: Api, somebody: Account) -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
    for secret in (pem, '{"kty": "OKP", "crv": "Ed25519"}', "", KID, SECRET[:32]):
        await assert_refused(api, sign(claims_of(somebody), secret=secret))


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "sid", "jti", "iat", "exp"])
async def test_J04_every_claim_is_needed(
    api: Api, somebody: Account, claim: str
) -> None:
    without = claims_of(somebody)
    del without[claim]
    await assert_refused(api, sign(without))
    await assert_refused(api, sign(claims_of(somebody) | {claim: None}))


@pytest.mark.parametrize(
    "written",
    [
        *("0", "-1", '"x"', "null", "true", "[]", "{}", "1e400", "NaN", "Infinity"),
        *("9" * 400, "9" * 5_000, "1e308", "{later}.5", '"{later}"', "{much_later}"),
        "{past}",
    ],
    ids=lambda written: written[:12],
)
async def test_J04_an_expiry_that_is_past_or_none_is_not_valid(
    api: Api, somebody: Account, written: str
) -> None:
    now = int(time.time())
    moments = {"later": now + 800, "much_later": now + 86_400, "past": now - 12}
    for name, moment in moments.items():
        written = written.replace(f"{{{name}}}", str(moment))
    claims = json.dumps(claims_of(somebody) | {"exp": 0, "iat": now - 100})
    token = sign(claims.replace('"exp": 0', f'"exp": {written}'))
    await assert_refused(api, token[:4096])


async def test_J04_an_expiry_within_the_leeway_is_valid(api: Api, ada: Account) -> None:
    claims = claims_of(ada) | {"exp": int(time.time()) - 5}
    await assert_accepted(api, sign(claims | {"iat": claims["exp"] - 900}))


@pytest.mark.slow
async def test_J04_a_token_that_was_valid_before_expires_all_the_same(
    api: Api, ada: Account
) -> None:
    # Of the ten seconds of leeway a few are left.
    claims = claims_of(ada) | {"exp": int(time.time()) - 4}
    token = sign(claims | {"iat": claims["exp"] - 900})
    await assert_accepted(api, token)
    async with asyncio.timeout(20):
        while (await call(api, token)).status_code == 200:
            await asyncio.sleep(0.1)
    assert time.time() - claims["exp"] >= 10
    await assert_refused(api, token)


async def test_a_session_that_has_ended_is_not_valid(
    service: Running, api: Api, ada: Account
) -> None:
    await assert_accepted(api, ada.token)
    await _end_session(service, claims_of(ada)["sid"])
    await assert_refused(api, ada.token)


async def _end_session(service: Running, sid: str) -> None:
    statement = update(SessionRow).where(SessionRow.id == uuid.UUID(sid))
    async with service.service(Database).transaction() as session:
        await session.execute(statement.values(expires_at=db_now()))


async def test_J05_a_token_from_the_future_is_not_valid(
    api: Api, somebody: Account
) -> None:
    now = int(time.time())
    ahead = {"iat": now + 60, "exp": now + 900}
    await assert_refused(api, sign(claims_of(somebody) | ahead))
    await assert_refused(api, sign(claims_of(somebody) | {"nbf": now + 60}))
    await assert_refused(api, sign(claims_of(somebody) | {"nbf": "x"}))
    await assert_refused(api, sign(claims_of(somebody) | {"iat": "x"}))
    a_little = {"iat": now + 5, "exp": now + 905, "nbf": now + 5}
    await assert_accepted(api, sign(claims_of(somebody) | a_little))


@pytest.mark.parametrize("claim", ["iss", "aud"])
@pytest.mark.parametrize(
    "value", ["other", "vopro", "vopros2", "VOPROS", "", 1, True, ["vopros"], {}]
)
async def test_J06_J07_a_token_of_or_for_somebody_else_is_not_valid(
    api: Api, somebody: Account, claim: str, value: object
) -> None:
    await assert_refused(api, sign(claims_of(somebody) | {claim: value}))


@pytest.mark.parametrize(
    "subject",
    [
        *("", "0", "-1", "01", "+1", " 1", "1.0", "1e3", "1_0", "x", "\u0661", "1\x00"),
        *("\ud800", "9" * 30, str(2**63), "me", "null"),
        *(1, 1.5, True, ["1"], {"id": 1}),
    ],
)
async def test_J08_a_subject_that_is_no_user_is_not_valid(
    api: Api, somebody: Account, subject: object
) -> None:
    await assert_refused(api, sign(claims_of(somebody) | {"sub": subject}))


@pytest.mark.parametrize("session", ["", "x", "0" * 32, 1, [], {}, "\x00", "9" * 99])
async def test_J08_a_session_that_is_none_is_not_valid(
    api: Api, somebody: Account, session: object
) -> None:
    await assert_refused(api, sign(claims_of(somebody) | {"sid": session}))


@pytest.mark.parametrize(
    "more",
    [
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"jku": "http://127.0.0.1/keys"},
        {"jwk": {"kty": "oct", "k": "AA"}},
        {"x5u": "http://127.0.0.1/chain"},
        {"x5c": []},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"kid": "../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "x" * 2_000},
        {"kid": ""},
        {"kid": 1},
        {"kid": None},
        {"kid": [KID]},
        {"typ": "JWT"},
        {"typ": "AT+JWT"},
        {"typ": "application/at+jwt"},
        {"typ": "rt+jwt"},
        {"typ": ""},
        {"typ": None},
        {"typ": ["at+jwt"]},
    ],
    ids=str,
)
async def test_J09_J10_J11_a_header_with_anything_else_is_not_valid(
    api: Api, somebody: Account, more: dict[str, Any]
) -> None:
    await assert_refused(api, sign(claims_of(somebody), HEADER | more))


@pytest.mark.parametrize("name", ["alg", "typ", "kid"])
async def test_J10_J11_a_header_with_less_is_not_valid(
    api: Api, somebody: Account, name: str
) -> None:
    less = {key: value for key, value in HEADER.items() if key != name}
    await assert_refused(api, sign(claims_of(somebody), less))


async def test_J12_what_is_no_access_token_is_not_valid(api: Api) -> None:
    for token in ("rt_" + "x" * 43, str(uuid.uuid4()), PASSWORD, "a.b.c", "..", "."):
        await assert_refused(api, token)


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"1",
        b'"x"',
        b"null",
        b"{",
        b"\xff\xfe",
        b"",
        b"[" * 2_900,
        b'{"a":' * 500,
    ],
    ids=lambda payload: payload[:6].hex(),
)
async def test_J13_a_payload_or_header_that_is_no_object_is_not_valid(
    api: Api, somebody: Account, payload: bytes
) -> None:
    await assert_refused(api, sign(payload))
    await assert_refused(api, sign(claims_of(somebody), payload))


async def test_J13_a_token_is_read_in_one_spelling_only(
    api: Api, somebody: Account
) -> None:
    head, payload, signature = somebody.token.split(".")
    for token in (
        f"{somebody.token}=",
        f"{head}=.{payload}.{signature}",
        f"{head}.{payload}==.{signature}",
        f"{head}.{payload}.{signature}.{signature}",
        f"{head}..{signature}",
        f".{payload}.{signature}",
        f"{head}.{payload}.{signature[:-2]}",
        f"{head}.{payload}.{signature[::-1]}",
        f"{head}.{payload}.{signature}\t{signature}",
        f"{head}.{payload}.{signature}+/",
        f"{head}.{payload}.{signature}%20",
    ):
        await assert_refused(api, token)
    await assert_refused(api, somebody.token.encode() + b"\xff")
    await assert_refused(api, "ж".encode() + somebody.token.encode())


async def test_J13_of_two_equal_claims_neither_gives_another_account(
    api: Api, somebody: Account
) -> None:
    bob = await api.account()
    claims = json.dumps(claims_of(somebody))
    await assert_refused(api, sign(claims[:-1] + f', "sub": "{bob.id}"}}'))


async def test_J14_a_token_that_is_too_long_is_not_even_read(
    api: Api, somebody: Account
) -> None:
    long = sign(claims_of(somebody) | {"jti": "x" * 3_500})
    assert len(long) > 4096
    await assert_refused(api, long)
    longest = sign(claims_of(somebody) | {"jti": "x" * 2_500})
    await assert_accepted(api, longest)
    assert_problem(await call(api, "x" * 40_000), 431, "headers_too_large")


async def test_J15_a_good_signature_does_not_make_an_account(
    api: Api, somebody: Account
) -> None:
    bob = await api.account()
    await assert_refused(api, sign(claims_of(somebody) | {"sub": str(bob.id)}))
    await assert_refused(api, sign(claims_of(somebody) | {"sid": str(uuid.uuid4())}))
    await assert_refused(api, sign(claims_of(somebody) | {"sub": str(2**63 - 1)}))


async def test_J15_another_server_with_another_secret_does_not_know_the_token(
    api: Api, somebody: Account
) -> None:
    secret = hashlib.sha256(b"another").hexdigest()
    await assert_refused(api, sign(claims_of(somebody), secret=secret))
    header = HEADER | {"kid": derived_kid(secret)}
    await assert_refused(api, sign(claims_of(somebody), header, secret=secret))


async def test_J16_a_token_gives_no_role(api: Api, somebody: Account) -> None:
    claims = claims_of(somebody) | {
        "role": "admin",
        "roles": ["admin"],
        "scope": "admin",
    }
    bearer = {"Authorization": f"Bearer {sign(claims)}"}
    assert_problem(await api.http.get("/users", headers=bearer), 403, "admins_only")
    assert (await api.http.get("/users/me", headers=bearer)).json()["role"] == "user"


@pytest.fixture
async def elsewhere(
    service: Running, database_kind: str, database_url: str, tmp_path: Path
) -> AsyncIterator[Api]:
    """Another replica on the same database; SQLite has one server only."""
    if database_kind == "sqlite":
        client = Api(service.url)
        yield client
        await client.close()
        return
    async with served(write_config(tmp_path / "app.toml", database_url)) as (_, client):
        yield client


async def test_J17_a_new_password_ends_every_other_session_on_every_replica(
    api: Api, elsewhere: Api, ada: Account
) -> None:
    other = await api.signed_in(ada.id, ada.username)
    for replica in (api, elsewhere):
        await assert_accepted(replica, other.token)
    body = {"current_password": PASSWORD, "new_password": f"{PASSWORD}-new"}
    changed = await api.http.put("/auth/password", json=body, headers=ada.auth)
    assert changed.status_code == 204
    for replica in (api, elsewhere):
        await assert_refused(replica, other.token)
        await assert_accepted(replica, ada.token)


async def test_J17_a_deleted_account_is_gone_on_every_replica(
    api: Api, elsewhere: Api, ada: Account
) -> None:
    await assert_accepted(elsewhere, ada.token)
    gone = await api.http.delete("/users/me", headers=ada.auth)
    assert gone.status_code == 204
    for replica in (elsewhere, api):
        await assert_refused(replica, ada.token)


async def test_J17_who_is_shut_out_is_refused_on_every_replica(
    service: Running, api: Api, elsewhere: Api, ada: Account
) -> None:
    admin = await make_admin(service, api)
    other = await elsewhere.signed_in(ada.id, ada.username)
    for is_active in (False, True):
        body = {"is_active": is_active}
        path = f"/users/{ada.id}"
        changed = await api.http.patch(path, json=body, headers=admin.auth)
        assert changed.status_code == 200
        for replica in (elsewhere, api):
            for who in (ada, other):
                await assert_refused(replica, who.token)


async def test_J17_a_changed_role_holds_from_the_next_request_on_every_replica(
    service: Running, api: Api, elsewhere: Api, ada: Account
) -> None:
    await make_admin(service, api)
    accounts = service.service(Accounts)
    for role, status in ((Role.ADMIN, 200), (Role.USER, 403), (Role.ADMIN, 200)):
        await accounts.set_role(ada.username, role)
        for replica in (elsewhere, api):
            for path in ("/users", "/questions", f"/users/{ada.id}"):
                answer = await replica.get(path, ada)
                assert answer.status_code == status


async def test_J17_a_revoked_session_or_inactive_account_is_refused_at_once(
    service: Running, api: Api, elsewhere: Api
) -> None:
    for change in (
        "UPDATE users SET is_active = false WHERE id = :id",
        "UPDATE auth_sessions SET revoked_at = created_at WHERE user_id = :id",
        "DELETE FROM auth_sessions WHERE user_id = :id",
    ):
        who = await api.account()
        async with service.service(Database).transaction() as session:
            await session.execute(text(change), {"id": who.id})
        for replica in (elsewhere, api):
            await assert_refused(replica, who.token)


@pytest.mark.slow
async def test_C3_a_database_that_is_down_is_503_and_never_401(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("down")
    own = Databases(folder)
    try:
        url = await own.migrated("postgresql")
        async with served(write_config(folder / "app.toml", url)) as (_, api):
            ada = await api.account()
            # The server of the tests does not write through: now it does.
            await own.postgres.execute("CHECKPOINT")
            own.postgres.halt()
            for answer in (
                await api.get("/users/me", ada),
                await api.get("/users", ada),
                await api.ask(ada, "Anybody there?"),
                await api.log_in(ada.username),
                await api.register("somebody"),
            ):
                assert_problem(answer, 503, "database_unavailable")
                assert int(answer.headers["retry-after"]) > 0
            await assert_refused(api, sign(claims_of(ada), secret="another"))
            own.postgres.start()
            await assert_accepted(api, ada.token)
    finally:
        own.close()


# As a TOML file writes it.
PUBLIC_KEY = (
    "-----BEGIN PUBLIC KEY-----\\n"
    "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\\n"
    "-----END PUBLIC KEY-----\\n"
)


@pytest.mark.parametrize(
    "secret",
    [
        *("", "short", "x" * 31, "x" * 64, "changethis" * 5, "your-secret-key" * 3),
        PUBLIC_KEY,
    ],
)
async def test_J18_a_weak_secret_refuses_the_start(
    databases: Databases, tmp_path: Path, secret: str
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url)
    file.write_text(file.read_text().replace(SECRET, secret))
    with pytest.raises(StartRefused) as refused:
        async with running(file):
            pass
    assert "[auth] secret" in str(refused.value)
    assert len(secret) < 31 or secret not in str(refused.value)
