"""A path leads to the most specific resource, whatever the method."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRouter

from core.resources import Resources, by_specificity
from tests.conftest import Databases, served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config

FIXED = {
    "/questions/me": "GET",
    "/questions/limits": "GET",
    "/questions/stream": "POST",
    "/users/me": "DELETE, GET, PATCH",
    "/users/me/export": "GET",
    "/auth/token": "POST",
    "/auth/logout-all": "POST",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize("method", METHODS)
async def test_a_fixed_path_is_never_taken_for_an_id(
    api: Api, ada: Account, method: str
) -> None:
    for path, allowed in FIXED.items():
        if method in allowed.split(", "):
            continue
        answer = await api.http.request(method, path, headers=ada.auth)
        assert answer.status_code == 405, (method, path, answer.text)
        assert answer.headers["allow"] == allowed
        if method != "HEAD":
            assert_problem(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "OPTIONS"])
async def test_a_method_is_refused_before_the_body_is_looked_at(
    api: Api, method: str
) -> None:
    for path, body in (("/auth/token", b"a=b"), ("/questions", b"{")):
        answer = await api.http.request(method, path, content=body)
        assert_problem(answer, 405, "method_not_allowed")


async def test_pages_and_their_files_name_their_methods(api: Api) -> None:
    for path in ("/docs", "/", "/openapi.json", "/docs/static/favicon.png"):
        answer = await api.http.post(path)
        assert_problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD"


async def test_405_is_the_same_below_a_root_path(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url, server='root_path = "/api"')
    async with served(file) as (_, api):
        for prefix in ("", "/api"):
            answer = await api.http.delete(f"{prefix}/questions/me")
            assert_problem(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == "GET"


def strangers() -> FastAPI:
    """Routes in an order that hides one behind another, as a module may have them."""
    router = APIRouter()

    @router.get("/things/{thing}")
    async def read(thing: str) -> str:
        return f"read {thing}"

    @router.delete("/things/{name}")
    async def delete(name: str) -> str:
        return f"delete {name}"

    @router.put("/things/{number:int}")
    async def put(number: int) -> str:
        return f"put {number}"

    @router.get("/things/all")
    async def read_all() -> str:
        return "all"

    @router.get("/things/{thing}/parts")
    async def parts(thing: str) -> str:
        return f"parts of {thing}"

    @router.get("/things/all/{part}")
    async def part(part: str) -> str:
        return f"all {part}"

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes.extend(router.routes)
    return app


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/things/7", {"GET", "DELETE", "PUT"}),
        ("/things/all", {"GET"}),
        ("/things/all/parts", {"GET"}),
    ],
)
def test_methods_of_a_path_are_those_of_all_its_routes(
    path: str, methods: set[str]
) -> None:
    found = Resources(strangers().routes).find({"path": path})
    assert found is not None
    assert found.methods == methods


async def test_the_more_specific_of_two_routes_answers_whatever_their_order() -> None:
    app = strangers()
    app.router.routes[:] = by_specificity(app.router.routes)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.get("/things/all")).json() == "all"
        assert (await http.get("/things/all/parts")).json() == "all parts"
        assert (await http.get("/things/7/parts")).json() == "parts of 7"
