"""Bodies that are no strict JSON, or not what a route takes (I01 to I13, I29)."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from core.testing import Running
from tests.conftest import Databases, Recorder, served
from tests.support.api import CANARY, PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.raw import exchange, request

ROUTES = (
    ("POST", "/auth/register"),
    ("PATCH", "/users/me"),
    ("PUT", "/auth/password"),
    ("POST", "/questions"),
)
FIELDS = (
    ("POST", "/auth/register", "username"),
    ("POST", "/auth/register", "password"),
    ("PATCH", "/users/me", "username"),
    ("PUT", "/auth/password", "current_password"),
    ("PUT", "/auth/password", "new_password"),
    ("POST", "/questions", "content"),
)
JSON = "application/json"
LIMIT = 65_536


async def send(
    api: Api,
    who: Account,
    method: str,
    path: str,
    body: Any,
    content_type: str | None = JSON,
    **headers: str,
) -> Any:
    """Send bytes as they are, and anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        more["Content-Type"] = content_type
    return await api.http.request(
        method, path, content=content, headers=who.auth | more
    )


@pytest.mark.parametrize("length", [LIMIT + 1, 10**9, 10**18, 10**30])
async def test_I01_an_announced_body_that_is_too_large_is_not_even_read(
    service: Running, length: int
) -> None:
    head = request(
        "POST", "/questions", f"Content-Type: {JSON}", f"Content-Length: {length}"
    )
    reply = await exchange(service.url, head)
    if length < 2**64:
        assert (reply.status, reply.problem["code"]) == (413, "body_too_large")
    else:
        assert reply.is_refused_by_the_server
    assert reply.is_closed


async def test_I01_a_body_without_a_length_is_read_to_the_limit_only(
    service: Running,
) -> None:
    head = request(
        "POST", "/questions", f"Content-Type: {JSON}", "Transfer-Encoding: chunked"
    )
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    # The last chunk never comes: only what was read so far can have been refused.
    reply = await exchange(service.url, head, *[chunk] * 4, b"1\r\nx\r\n")
    assert (reply.status, reply.problem["code"]) == (413, "body_too_large")
    assert reply.is_closed


async def test_I01_a_body_of_exactly_the_limit_is_read(
    api: Api, somebody: Account
) -> None:
    body = json.dumps({"content": ""}).encode().ljust(LIMIT)
    assert_problem(await send(api, somebody, "POST", "/questions", body), 422)
    too_long = await send(api, somebody, "POST", "/questions", body + b" ")
    assert_problem(too_long, 413, "body_too_large")


async def test_I01_what_follows_a_lying_length_is_no_part_of_the_body(
    service: Running,
) -> None:
    body = b'{"content": "' + CANARY.encode() * 100 + b'"}'
    head = request("POST", "/questions", f"Content-Type: {JSON}", "Content-Length: 5")
    reply = await exchange(service.url, head + body)
    assert reply.status == 400
    assert CANARY.encode() not in reply.body


async def test_I01_a_body_that_never_comes_to_its_end_is_given_up(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url, server="body_seconds = 0.2")
    async with served(file) as (found, api):
        head = request(
            "POST", "/auth/register", f"Content-Type: {JSON}", "Content-Length: 50"
        )
        reply = await exchange(found.url, head, b'{"username": ')
        assert (reply.status, reply.problem["code"]) == (408, "request_timeout")
        assert reply.is_closed
        assert (await api.get("/health/live")).status_code == 200


async def test_I01_a_client_that_leaves_in_the_middle_is_no_error(
    api: Api, secrets_stay_inside: Recorder
) -> None:
    seen = len(secrets_stay_inside.lines)
    port = int(api.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = request("POST", "/questions", f"Content-Type: {JSON}", "Content-Length: 50")
    writer.write(head + b'{"content": ')
    await writer.drain()
    writer.close()
    async with asyncio.timeout(60):
        while not any("(no resp" in line for line in secrets_stay_inside.lines[seen:]):
            await asyncio.sleep(0.005)
    failed = [each for each in secrets_stay_inside.lines[seen:] if "failed" in each]
    assert failed == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"content": }',
        b'{"content": "a",}',
        b"{'content': 'a'}",
        b'{"content": "a"} x',
        b'{"content": "line\nbreak"}',
        b'{"content": "\x00"}',
        b'{"content": 01}',
        b"\xff\xfe",
        b'{"content": "\xff"}',
        b'{"content": "\xc0\xaf"}',
        b'{"content": "\xed\xa0\x80"}',
        b" ",
    ],
)
async def test_I02_what_is_no_json_or_no_utf8_is_malformed(
    api: Api, somebody: Account, body: bytes
) -> None:
    for method, path in ROUTES:
        canary = body.replace(b"content", CANARY.encode())
        answer = await send(api, somebody, method, path, canary)
        assert_problem(answer, 400, "malformed_body")


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
async def test_I03_json_in_another_encoding_or_with_a_mark_is_malformed(
    api: Api, somebody: Account, codec: str
) -> None:
    for method, path in ROUTES:
        body = json.dumps({"content": CANARY}).encode(codec)
        assert_problem(
            await send(api, somebody, method, path, body), 400, "malformed_body"
        )


@pytest.mark.parametrize("escape", [r"\ud800", r"\udfff\ud800", r"\u0000"])
async def test_I04_I06_a_lone_surrogate_or_nul_is_invalid_text(
    api: Api, somebody: Account, escape: str
) -> None:
    for method, path, field in FIELDS:
        body = f'{{"{field}": "{CANARY}{escape}"}}'.encode()
        problem = assert_problem(await send(api, somebody, method, path, body), 422)
        assert problem["errors"] == [
            {
                "loc": ["body", field],
                "code": "invalid_text",
                "message": "Must not contain NUL or unpaired surrogates.",
            }
        ]


@pytest.mark.parametrize("escape", [r"\ud800", r"\u0000"])
async def test_I04_I06_a_lone_surrogate_or_nul_in_a_key_is_invalid_text(
    api: Api, somebody: Account, escape: str
) -> None:
    for method, path in ROUTES:
        body = f'{{"{CANARY}{escape}": [1]}}'.encode()
        problem = assert_problem(await send(api, somebody, method, path, body), 422)
        assert [error["loc"] for error in problem["errors"]] == [["body"]]


async def test_I04_a_pair_of_surrogates_is_one_character(
    api: Api, somebody: Account
) -> None:
    body = rb'{"content": "\ud83d\ude00"}'
    answer = await send(api, somebody, "POST", "/questions", body)
    assert answer.json()["content"] == "\U0001f600"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999"])
async def test_I05_a_number_that_is_none_is_malformed(
    api: Api, somebody: Account, number: str
) -> None:
    for method, path, field in FIELDS:
        body = f'{{"{field}": {number}}}'.encode()
        assert_problem(
            await send(api, somebody, method, path, body), 400, "malformed_body"
        )


async def test_I05_a_number_of_thousands_of_digits_is_malformed(
    api: Api, somebody: Account
) -> None:
    body = b'{"content": ' + b"9" * 5000 + b"}"
    answer = await send(api, somebody, "POST", "/questions", body)
    assert_problem(answer, 400, "malformed_body")


@pytest.mark.parametrize("depth", [33, 900, 30_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
async def test_I07_deep_nesting_is_malformed(
    api: Api, somebody: Account, depth: int, opening: str, closing: str
) -> None:
    depth = min(depth, LIMIT // len(opening + closing) - 1)
    body = (opening * depth + "1" + closing * depth).encode()
    answer = await send(api, somebody, "POST", "/questions", body)
    assert_problem(answer, 400, "malformed_body")


async def test_I07_nesting_of_the_allowed_depth_is_not_malformed(
    api: Api, somebody: Account
) -> None:
    answer = await send(api, somebody, "POST", "/questions", b"[" * 32 + b"]" * 32)
    assert_problem(answer, 422, "validation_failed")


async def test_I07_brackets_inside_of_text_do_not_nest(
    api: Api, somebody: Account
) -> None:
    answer = await send(api, somebody, "POST", "/questions", {"content": "[{" * 100})
    assert answer.status_code == 201


@pytest.mark.parametrize("second", ["{field}", r"\u00{code:02x}{rest}"])
async def test_I08_a_key_given_twice_is_malformed(
    api: Api, somebody: Account, second: str
) -> None:
    for method, path, field in FIELDS:
        again = second.format(field=field, code=ord(field[0]), rest=field[1:])
        body = f'{{"{field}": "a-name", "{again}": "{CANARY}"}}'.encode()
        assert_problem(
            await send(api, somebody, method, path, body), 400, "malformed_body"
        )


async def test_I08_a_key_given_twice_deep_inside_is_malformed(
    api: Api, somebody: Account
) -> None:
    body = b'{"content": [{"a": {"b": 1, "b": 1}}]}'
    answer = await send(api, somebody, "POST", "/questions", body)
    assert_problem(answer, 400, "malformed_body")


@pytest.mark.parametrize("extra", ["role", "is_admin", "id", "user_id", "is_active"])
async def test_I09_an_unknown_field_is_named_and_its_value_is_not(
    api: Api, somebody: Account, extra: str
) -> None:
    for method, path, field in FIELDS:
        body = {field: PASSWORD, extra: CANARY}
        problem = assert_problem(await send(api, somebody, method, path, body), 422)
        unknown = {"loc": ["body", extra], "code": "unknown_field"}
        assert any(unknown.items() <= error.items() for error in problem["errors"])
        assert (await api.get("/users/me", somebody)).json()["role"] == "user"


async def test_I09_the_name_of_an_unknown_field_is_cut(
    api: Api, somebody: Account
) -> None:
    body = {"content": "a", "x" * 60_000: 1}
    answer = await send(api, somebody, "POST", "/questions", body)
    problem = assert_problem(answer, 422)
    assert problem["errors"][0]["loc"] == ["body", "x" * 64]


async def test_I09_thousands_of_mistakes_are_not_all_told(
    api: Api, somebody: Account
) -> None:
    unknown = await send(
        api, somebody, "POST", "/questions", {f"f{n}": n for n in range(4_000)}
    )
    bad_text = await send(
        api, somebody, "POST", "/questions", b"[" + rb'"\u0000",' * 7_000 + b"1]"
    )
    for answer in (unknown, bad_text):
        assert len(assert_problem(answer, 422)["errors"]) == 32


async def test_I10_a_missing_field_does_not_bring_the_password_back(
    api: Api, somebody: Account
) -> None:
    for method, path, body, missing in (
        ("POST", "/auth/register", {"password": PASSWORD}, "username"),
        ("PUT", "/auth/password", {"current_password": PASSWORD}, "new_password"),
        ("PUT", "/auth/password", {"new_password": PASSWORD}, "current_password"),
        ("POST", "/questions", {}, "content"),
    ):
        answer = await send(api, somebody, method, path, body)
        assert assert_problem(answer, 422)["errors"] == [
            {
                "loc": ["body", missing],
                "code": "required",
                "message": "This field is required.",
            }
        ]


@pytest.mark.parametrize("value", [1, 1.5, True, None, [CANARY], {"a": CANARY}])
async def test_I11_what_is_not_text_is_not_made_into_text(
    api: Api, somebody: Account, value: object
) -> None:
    for method, path, field in FIELDS:
        if (path, value) == ("/users/me", None):
            continue  # Null leaves this optional field as it is.
        answer = await send(api, somebody, method, path, {field: value})
        errors = assert_problem(answer, 422, "validation_failed")["errors"]
        assert ("not_text", ["body", field]) in [(e["code"], e["loc"]) for e in errors]


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/vnd.api+json",
        "application/problem+json",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/jsonp",
        "json",
        CANARY,
    ],
)
async def test_I12_a_body_of_another_type_is_unsupported(
    api: Api, somebody: Account, content_type: str | None
) -> None:
    for method, path in ROUTES:
        answer = await send(
            api, somebody, method, path, {"content": CANARY}, content_type
        )
        assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=utf-8",
        'application/json; charset="UTF-8"',
    ],
)
async def test_I12_json_is_accepted_as_anybody_spells_it(
    api: Api, somebody: Account, content_type: str
) -> None:
    answer = await send(
        api, somebody, "POST", "/questions", {"content": "?"}, content_type
    )
    assert answer.status_code == 201


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"x"', b"1", b"true"])
async def test_I13_a_body_that_is_no_object_is_not_valid(
    api: Api, somebody: Account, body: bytes
) -> None:
    for method, path in ROUTES:
        problem = assert_problem(await send(api, somebody, method, path, body), 422)
        assert [error["loc"] for error in problem["errors"]] == [["body"]]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "deflate", "identity, gzip"])
async def test_I29_a_compressed_body_is_unsupported(
    api: Api, somebody: Account, coding: str
) -> None:
    for method, path in ROUTES:
        body = gzip.compress(b'{"content": "?"}')
        answer = await send(api, somebody, method, path, body, Content_Encoding=coding)
        assert_problem(answer, 415, "unsupported_media_type")
