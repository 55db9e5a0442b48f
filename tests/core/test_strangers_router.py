"""A module from outside of the tree: strict JSON, problems, callers, as for our own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import StartRefused
from core.testing import running
from tests.conftest import Databases, Recorder, served
from tests.support import guestbook
from tests.support.api import Account, Api, assert_problem
from tests.support.config import SECRET

GUEST = Account(7, "user-7", "7")


@pytest.fixture(params=["sqlite", "postgresql"])
async def config(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path
) -> Path:
    """A configuration with the stranger's module and none of ours."""
    url = await databases.migrated(request.param)
    file = tmp_path / "app.toml"
    file.write_text(
        f'[database]\nurl = "{url}"\n\n[modules]\nenabled = ["{guestbook.NAME}"]\n'
    )
    return file


@pytest.fixture
async def guests(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    guestbook.install(tmp_path / "site", monkeypatch)
    async with served(config) as (_, api):
        yield api
    guestbook.forget()


async def test_a_strangers_routes_are_served_and_know_their_callers(
    guests: Api,
) -> None:
    body = {"text": "Hello", "stars": 5}
    written = await guests.http.post("/guests", json=body, headers=GUEST.auth)
    assert (written.status_code, written.json()) == (201, {"text": "Hello", "by": 7})
    signed = await guests.http.post("/guests/form", data={"name": "Ada"})
    assert signed.json() == {"name": "Ada"}
    assert_problem(await guests.http.post("/guests", json=body), 401, "token_missing")
    assert_problem(await guests.get("/guests/all", GUEST), 403, "admins_only")
    admin = Account(1, "user-1", "1:admin")
    assert (await guests.get("/guests/all", admin)).json() == []
    assert_problem(await guests.get("/users/me", GUEST), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"text": "a", "text": "b"}', 400, "malformed_body"),
        (b'{"text": "a", "stars": NaN}', 400, "malformed_body"),
        (b'{"text": "a", "stars": 1e400}', 400, "malformed_body"),
        (b"[" * 33 + b"]" * 33, 400, "malformed_body"),
        ('{"text": "a"}'.encode("utf-16"), 400, "malformed_body"),
        (b'{"text": "\\ud800"}', 422, "validation_failed"),
        (b'{"text": "\\u0000"}', 422, "validation_failed"),
        (b'{"text": "damn canary-inside-7c20be"}', 422, "validation_failed"),
        (b'{"text": ' + b" " * 65_536 + b'"a"}', 413, "body_too_large"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_a_strangers_routes_get_strict_json_only(
    guests: Api, body: bytes, status: int, code: str
) -> None:
    headers = GUEST.auth | {"Content-Type": "application/json"}
    posted = await guests.http.post("/guests", content=body, headers=headers)
    got = await guests.http.request(
        "GET", "/guests/search", content=body, headers=headers
    )
    told = assert_problem(posted, status, code)
    assert guestbook.CANARY not in str(told)
    if b"damn" not in body:
        assert_problem(got, status, code)


async def test_a_strangers_routes_take_the_type_that_they_declare(
    guests: Api,
) -> None:
    as_form = await guests.http.post("/guests", data={"text": "a"}, headers=GUEST.auth)
    as_json = await guests.http.post("/guests/form", json={"name": "a"})
    twice = await guests.http.post(
        "/guests/form",
        content="name=a&name=b",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    for answer in (as_form, as_json):
        assert_problem(answer, 415, "unsupported_media_type")
    assert_problem(twice, 400, "invalid_request")


async def test_what_nobody_foresaw_is_500_and_shows_no_insides(
    guests: Api, secrets_stay_inside: Recorder
) -> None:
    seen = len(secrets_stay_inside.lines)
    for path in ("fails", "database", "lies"):
        answer = await guests.get(f"/guests/{path}")
        problem = assert_problem(answer, 500, "internal_error")
        assert problem["detail"] == "Something went wrong on our side."
        assert "canary" not in answer.text
        assert "Error" not in answer.text
        logged = [
            line
            for line in secrets_stay_inside.lines[seen:]
            if line.startswith("request.failed") and problem["request_id"] in line
        ]
        assert len(logged) == 1
        # Where it happened is told to the operator, but not the message.
        assert "router.py" in logged[0] or path == "lies"
        assert guestbook.CANARY not in logged[0]
    assert (await guests.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (404, 404, "not_found"),
        (409, 409, "conflict"),
        (418, 418, "http_418"),
        (429, 429, "too_many"),
        (500, 500, "internal_error"),
        (507, 507, "http_507"),
    ],
)
async def test_a_strangers_http_exception_is_told_in_our_words(
    guests: Api, raised: int, status: int, code: str
) -> None:
    answer = await guests.get(f"/guests/http/{raised}")
    assert_problem(answer, status, code)
    assert guestbook.CANARY not in answer.text
    assert guestbook.CANARY not in repr(answer.headers)
    assert answer.headers["retry-after"] == "7"


async def test_a_strangers_operations_are_documented_as_ours_are(
    guests: Api,
) -> None:
    document = (await guests.get("/openapi.json")).json()
    operation = document["paths"]["/guests"]["post"]
    assert {"401", "422", "default"} <= operation["responses"].keys()
    assert operation["security"]
    assert operation["operationId"] == "write"
    restricted = document["paths"]["/guests/all"]["get"]
    assert restricted["summary"].endswith(" (administrators)")
    assert "403" in restricted["responses"]
    assert "HTTPValidationError" not in str(document)
    scheme = document["components"]["securitySchemes"]["Account"]
    assert scheme["flows"]["password"]["tokenUrl"] == "/token"
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert tags["guests"] == "What guests leave."


async def test_protected_routes_that_nobody_can_guard_refuse_the_start(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guestbook.install(tmp_path / "site", monkeypatch, brings_callers=False)
    try:
        with pytest.raises(StartRefused) as refused:
            async with running(config):
                pass
    finally:
        guestbook.forget()
    assert "/guests" in str(refused.value)
    assert SECRET not in str(refused.value)
