"""Pages of other origins: those that the operator names, and no others."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import StartRefused
from core.settings import load_settings
from tests.conftest import Databases, served
from tests.support.api import Api
from tests.support.config import write_config
from tests.support.upstream import Upstream

ORIGIN = "https://app.example"
FROM = {"Origin": ORIGIN}


@pytest.fixture
async def shared(
    databases: Databases, tmp_path: Path, upstream: Upstream
) -> AsyncIterator[Api]:
    """An API that pages of ORIGIN may call."""
    url = await databases.migrated("sqlite")
    origins = f'cors_origins = ["{ORIGIN}", "http://localhost:3000"]'
    file = tmp_path / "app.toml"
    write_config(file, url, upstream.base_url, server=origins)
    async with served(file) as (_, api):
        yield api


async def test_a_preflight_is_answered_on_every_path_and_method(shared: Api) -> None:
    document = (await shared.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method in methods:
            answer = await shared.http.options(
                path,
                headers=FROM
                | {
                    "Access-Control-Request-Method": method.upper(),
                    "Access-Control-Request-Headers": "authorization,content-type,"
                    "idempotency-key",
                },
            )
            assert answer.status_code == 200, (path, method)
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            allowed = answer.headers["access-control-allow-methods"]
            assert method.upper() in allowed.split(", ")
            headers = answer.headers["access-control-allow-headers"].lower()
            assert {"authorization", "content-type", "idempotency-key"} <= {
                name.strip() for name in headers.split(",")
            }
            assert "access-control-allow-credentials" not in answer.headers


async def test_another_origin_gets_no_permission(shared: Api) -> None:
    for origin in ("https://evil.example", "https://app.example.evil", "null"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = await shared.http.options("/questions", headers=headers)
        assert preflight.status_code == 400
        plain = await shared.http.get("/health/live", headers={"Origin": origin})
        for answer in (preflight, plain):
            assert "access-control-allow-origin" not in answer.headers


async def test_errors_and_streams_can_be_read_by_the_page(shared: Api) -> None:
    ada = await shared.account("Ada")
    with_token = FROM | ada.auth
    answers = [
        await shared.http.get("/users/me", headers=FROM),
        await shared.http.get("/nowhere", headers=FROM),
        await shared.http.post("/questions", json={"content": " "}, headers=with_token),
        await shared.http.post("/questions", content=b"{", headers=with_token),
        await shared.http.delete("/questions/me", headers=with_token),
        await shared.http.get("/health/live", headers=FROM | {"Host": "evil.example"}),
        await shared.http.get("/health/live", headers=FROM | {"X-Big": "x" * 40_000}),
        await shared.http.post(
            "/questions/stream", json={"content": "Why?"}, headers=with_token
        ),
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [401, 404, 422, 415, 405, 400, 431, 200]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = answer.headers["access-control-expose-headers"]
        assert {"Retry-After", "X-Request-ID", "RateLimit"} <= set(exposed.split(", "))
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "null", "app.example", "https://app.example/", "https://App.example"),
        *("https://app.example:443", "http://app.example:80", "ftp://app.example"),
        *("https://app.example/page", "https://user@app.example", "https://"),
    ],
)
def test_what_no_browser_sends_is_refused(tmp_path: Path, origin: str) -> None:
    file = write_config(
        tmp_path / "app.toml",
        f"sqlite+aiosqlite:///{tmp_path}/v.db",
        server=f'cors_origins = ["{origin}"]',
    )
    with pytest.raises(StartRefused, match="cors_origins: must be origins"):
        load_settings(file, {})
