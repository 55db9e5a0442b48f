"""HTTP itself: hosts, framing, headers, methods, paths (I20 to I30)."""

import asyncio

import pytest

from core.testing import Running
from tests.support.api import CANARY, Account, Api, assert_problem
from tests.support.raw import exchange, request

LIVE = "/health/live"
TREE = {
    "/auth/register": {"POST"},
    "/auth/token": {"POST"},
    "/auth/password": {"PUT"},
    "/auth/refresh": {"POST"},
    "/auth/sessions": {"GET"},
    "/auth/sessions/1f0e7a52-90b3-4c1d-8a3e-55b1c7d0e9aa": {"DELETE"},
    "/auth/logout": {"POST"},
    "/auth/logout-all": {"POST"},
    "/users/me": {"GET", "PATCH", "DELETE"},
    "/users/me/export": {"GET"},
    "/users": {"GET"},
    "/users/1": {"GET", "PATCH"},
    "/questions": {"GET", "POST"},
    "/questions/me": {"GET"},
    "/questions/limits": {"GET"},
    "/questions/stream": {"POST"},
    "/questions/1": {"GET", "DELETE"},
    LIVE: {"GET", "HEAD"},
    "/health/ready": {"GET", "HEAD"},
    "/docs": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
    "/docs/static/favicon.png": {"GET", "HEAD"},
}


async def test_I20_a_path_with_a_slash_too_many_is_not_redirected(api: Api) -> None:
    for path in TREE.keys() - {"/docs/static/favicon.png"}:
        answer = await api.http.get(f"{path}/")
        assert_problem(answer, 404, "not_found")
        assert "location" not in answer.headers


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "a/b?c", "localhost.evil.example", "evil.example:8000", " "),
        *("127.0.0.1@evil.example", "localhost:port", "127.0.0.1, localhost", "[::1"),
        *("localhost:123456", CANARY),
    ],
)
async def test_I21_another_host_is_refused(service: Running, host: str) -> None:
    reply = await exchange(service.url, request("GET", LIVE, host=host))
    assert (reply.status, reply.problem["code"]) == (400, "bad_host")
    assert host == " " or host.encode() not in reply.body
    assert reply.is_closed


async def test_I21_a_host_must_be_given_once(service: Running) -> None:
    twice = request("GET", LIVE, "Host: 127.0.0.1")
    never = f"GET {LIVE} HTTP/1.1\r\n\r\n".encode()
    never_of_old = f"GET {LIVE} HTTP/1.0\r\n\r\n".encode()
    for data in (twice, never, never_of_old):
        reply = await exchange(service.url, data)
        assert (reply.status, reply.problem["code"]) == (400, "bad_host")


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1", "[::1]:1"]
)
async def test_I21_every_name_of_a_loopback_server_is_its_own(
    service: Running, host: str
) -> None:
    reply = await exchange(service.url, request("GET", LIVE, host=host))
    assert reply.status == 200


async def test_I21_the_host_in_a_target_is_not_looked_at(service: Running) -> None:
    target = f"http://evil.example/users/me?{CANARY}"
    reply = await exchange(service.url, request("GET", target))
    assert (reply.status, reply.problem["code"]) == (401, "token_missing")
    assert b"evil" not in reply.body
    other = await exchange(service.url, request("GET", target, host="evil.example"))
    assert (other.status, other.problem["code"]) == (400, "bad_host")


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Content-Length: 5"),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: -1",),
        ("Transfer-Encoding: chunked, identity",),
        ("X-Folded: a\r\n b",),
        ("X-Spaced : a",),
        ("X-Control: a\x00b",),
        ("X-Bare: a\nX-Smuggled: b\n",),
    ],
    ids=" + ".join,
)
async def test_I22_a_request_that_two_servers_could_read_in_two_ways_is_refused(
    service: Running, headers: tuple[str, ...]
) -> None:
    smuggled = request("GET", LIVE)
    data = request("POST", "/questions", *headers, body=b"0\r\n\r\n" + smuggled)
    # There is one reply, and the server closes the connection after it.
    assert (await exchange(service.url, data)).is_refused_by_the_server


async def test_I22_lines_end_with_cr_and_lf(service: Running) -> None:
    data = f"GET {LIVE} HTTP/1.1\nHost: 127.0.0.1\n\n".encode()
    assert (await exchange(service.url, data)).is_refused_by_the_server


@pytest.mark.parametrize(
    "headers",
    [
        [f"X-Flood: {'x' * 1_000_000}"],
        [f"X-Flood: {'x' * 33_000}"],
        [f"X-{n}: {CANARY}" for n in range(1_500)],
        [f"Authorization: Bearer {'x' * 1_000_000}"],
    ],
    ids=["1 MB", "33 kB", "many", "bearer"],
)
async def test_I23_headers_without_end_are_refused(
    service: Running, headers: list[str]
) -> None:
    reply = await exchange(service.url, request("GET", LIVE, *headers))
    assert (reply.status, reply.problem["code"]) == (431, "headers_too_large")
    assert CANARY.encode() not in reply.body
    assert reply.is_closed


async def test_I23_a_bearer_longer_than_any_token_is_not_valid(
    service: Running,
) -> None:
    bearer = f"Authorization: Bearer {'x' * 20_000}"
    reply = await exchange(service.url, request("GET", "/users/me", bearer))
    assert (reply.status, reply.problem["code"]) == (401, "invalid_token")


@pytest.mark.parametrize(
    "forwarded",
    ["203.0.113.9", "203.0.113.9, 10.0.0.1, 127.0.0.1", "[2001:db8::1]", CANARY, ","],
)
async def test_I24_nobody_is_believed_to_forward_for_others(
    api: Api, forwarded: str
) -> None:
    headers = {
        "X-Forwarded-For": forwarded,
        "X-Forwarded-Host": CANARY,
        "X-Forwarded-Proto": CANARY,
        "Forwarded": f"for={CANARY}",
    }
    answer = await api.http.get("/users/me", headers=headers)
    assert_problem(answer, 401, "token_missing")


@pytest.mark.parametrize("offered", ["a", "Req-1.2_3", "x" * 64])
async def test_I25_a_plain_request_id_is_taken_over(api: Api, offered: str) -> None:
    answer = await api.http.get("/nothing", headers={"X-Request-ID": offered})
    assert assert_problem(answer, 404)["request_id"] == offered


@pytest.mark.parametrize(
    "offered",
    [
        b"",
        b"a b",
        b"x" * 65,
        b"x" * 10_000,
        CANARY.encode() + b"\xff",
        CANARY.encode() + b"\xc3\xa9",
        CANARY.encode() + b"%0d%0aX-Injected: yes",
        CANARY.encode() + b"\t31m",
        b"<script>",
    ],
)
async def test_I25_any_other_request_id_is_replaced(
    service: Running, offered: bytes
) -> None:
    header = b"X-Request-ID: " + offered
    reply = await exchange(service.url, request("GET", "/nothing", header))
    made = reply.problem["request_id"]
    assert len(made) == 32 and made.isalnum()
    assert CANARY not in repr(reply)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "OPTIONS", "PROPFIND", "QUERY"])
async def test_I26_a_method_that_a_path_has_not_is_told_with_those_it_has(
    service: Running, method: str
) -> None:
    for path, methods in TREE.items():
        if method in methods:
            continue
        reply = await exchange(service.url, request(method, path))
        assert (reply.status, reply.problem["code"]) == (405, "method_not_allowed")
        assert reply.headers["allow"].split(", ") == sorted(methods)


async def test_I26_head_is_refused_without_a_body(service: Running) -> None:
    reply = await exchange(service.url, request("HEAD", "/users/me"))
    assert (reply.status, reply.body) == (405, b"")
    assert reply.headers["allow"] == "DELETE, GET, PATCH"


async def test_I26_a_method_nobody_knows_is_no_http(service: Running) -> None:
    for method in (CANARY, "get", "FOO"):
        reply = await exchange(service.url, request(method, LIVE))
        assert reply.is_refused_by_the_server


async def test_I26_a_method_is_not_overridden(api: Api, somebody: Account) -> None:
    headers = somebody.auth | {"X-HTTP-Method-Override": "DELETE"}
    answer = await api.http.post("/users/me?_method=DELETE", headers=headers)
    assert_problem(answer, 405, "method_not_allowed")
    assert (await api.get("/users/me", somebody)).status_code == 200


async def test_I26_no_other_site_is_let_in(api: Api) -> None:
    asking = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    for answer in (
        await api.http.options("/questions", headers=asking),
        await api.http.get(LIVE, headers=asking),
    ):
        assert not [name for name in answer.headers if name.startswith("access-")]


@pytest.mark.parametrize(
    "header",
    [
        *("Range: bytes=0-1", "Range: bytes=9999999-", "Range: bytes=5-1", "Range: x"),
        *("If-None-Match: *", "If-Match: *", "If-Range: x", "Expect: 200-maybe"),
        *("If-Modified-Since: x", "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT"),
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x",
    ],
)
async def test_I27_what_a_client_may_ask_for_on_top_is_ignored(
    service: Running, header: str
) -> None:
    live = await exchange(service.url, request("GET", LIVE, header))
    assert (live.status, live.body) == (200, b'{"status":"live"}')
    if "None-Match" in header:
        return
    icon = await exchange(service.url, request("GET", "/favicon.ico", header))
    static = "/docs/static/favicon.png"
    file = await exchange(service.url, request("GET", static, header))
    assert (file.status, file.body) == (200, icon.body)


async def test_I27_a_client_that_waits_for_leave_to_send_gets_it(
    service: Running,
) -> None:
    expecting = request(
        "POST",
        "/auth/register",
        "Expect: 100-continue",
        "Content-Type: application/json",
        "Content-Length: 2",
        "Connection: close",
    )
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(service.url.rpartition(":")[2])
    )
    async with asyncio.timeout(60):
        writer.write(expecting)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 422 ")
    writer.close()


async def test_I27_a_client_that_waits_with_too_much_is_told_at_once(
    service: Running,
) -> None:
    expecting = request(
        "POST", "/auth/register", "Expect: 100-continue", "Content-Length: 100000"
    )
    reply = await exchange(service.url, expecting)
    assert (reply.status, reply.is_closed) == (413, True)


@pytest.mark.parametrize(
    "accept", ["text/html", "*/*;q=0", "application/xml", "", CANARY, "," * 5_000]
)
async def test_I28_the_answer_is_json_whatever_is_asked_for(
    api: Api, somebody: Account, accept: str
) -> None:
    wishes = {"Accept": accept, "Accept-Encoding": "gzip;q=1," * 500 + "br"}
    answer = await api.http.get("/users/me", headers=somebody.auth | wishes)
    assert answer.json()["id"] == somebody.id
    assert answer.headers["content-type"] == "application/json"
    assert "content-encoding" not in answer.headers
    refused = await api.http.get("/users", headers=somebody.auth | wishes)
    assert_problem(refused, 403, "admins_only")


@pytest.mark.parametrize(
    "target",
    [
        "/%2e%2e/%2e%2e/etc/passwd",
        "/../../etc/passwd",
        "//users/me",
        "//evil.example/users/me",
        "/users//me",
        "/nobody%2Fme%00",
        "/%00",
        "/%ff%fe",
        "/users/%ff/x",
        "/%",
        "/%zz",
        "/" + "x" * 8_000,
        f"/{CANARY}",
        f"/{CANARY}?{CANARY}={CANARY}",
        "/docs/static/%2e%2e/%2e%2e/pyproject.toml",
        "/docs/static/..%2f..%2f..%2fpyproject.toml",
        "/docs/static/%00",
        "/docs/static/" + "x" * 8_000,
        "/docs/static/favicon.png/x",
        "/docs/static",
        "/docs/static/",
        "*",
    ],
    ids=lambda target: target[:30],
)
async def test_I30_a_path_to_nowhere_is_not_found(
    service: Running, target: str
) -> None:
    reply = await exchange(service.url, request("GET", target))
    assert (reply.status, reply.problem["code"]) == (404, "not_found")
    assert CANARY not in repr(reply)


@pytest.mark.parametrize("target", ["/\xff", "/a b", "http://", "x", "/a\x00"])
async def test_I30_a_target_that_is_none_is_no_http(
    service: Running, target: str
) -> None:
    reply = await exchange(service.url, request("GET", target))
    assert reply.is_refused_by_the_server
