"""The document behind the pages: complete enough to be used without other help."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Databases, served
from tests.support.api import PASSWORD, Api, assert_problem
from tests.support.config import write_config
from tests.support.reverse_proxy import reverse_proxy

METHODS = {"get", "put", "post", "delete", "patch"}


async def document(api: Api) -> dict[str, Any]:
    answer = await api.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(made: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in made["paths"].items():
        for method in item.keys() & METHODS:
            yield f"{method.upper()} {path}", item[method]


def schema_at(made: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = made["components"]["schemas"][name] if name else schema
    return found


async def test_every_operation_and_group_is_described(api: Api) -> None:
    made = await document(api)
    groups = {tag["name"]: tag["description"] for tag in made["tags"]}
    assert list(groups) == ["auth", "providers", "questions", "users", "health"]
    assert all(groups.values())
    for name, operation in operations(made):
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= groups.keys(), name
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                assert parameter["description"], name


async def test_every_field_that_is_sent_or_received_has_an_example(api: Api) -> None:
    made = await document(api)
    for name, schema in made["components"]["schemas"].items():
        # Problems are shown whole, with each response.
        is_problem = name.startswith("Problem")
        if schema.get("type") != "object" or "examples" in schema or is_problem:
            continue
        for field, told in schema["properties"].items():
            # A part that is a schema of ours brings its examples along.
            composed = "$ref" in str(told) or "const" in told
            assert composed or told.get("examples"), f"{name}.{field}"


async def test_the_examples_of_what_is_sent_are_accepted_in_order(api: Api) -> None:
    """As somebody does who presses Execute without changing anything."""
    made = await document(api)

    def example(path: str, method: str) -> dict[str, Any]:
        body = made["paths"][path][method]["requestBody"]["content"]
        schema = schema_at(made, next(iter(body.values()))["schema"])
        if "examples" in schema:
            found: dict[str, Any] = schema["examples"][0]
            return found
        return {k: v["examples"][0] for k, v in schema["properties"].items()}

    registered = await api.http.post(
        "/auth/register", json=example("/auth/register", "post")
    )
    assert registered.status_code == 201
    token = await api.http.post("/auth/token", data=example("/auth/token", "post"))
    assert token.status_code == 200
    headers = {"Authorization": f"Bearer {token.json()['access_token']}"}
    for method, path, status in (
        ("post", "/questions", 201),
        ("patch", "/users/me", 200),
        ("put", "/auth/password", 204),
    ):
        answer = await api.http.request(
            method, path, json=example(path, method), headers=headers
        )
        assert answer.status_code == status, answer.text


async def test_problems_are_listed_and_the_frameworks_own_schema_is_not(
    api: Api,
) -> None:
    made = await document(api)
    assert "HTTPValidationError" not in str(made)
    assert "Successful Response" not in str(made)
    for name, operation in operations(made):
        responses = operation["responses"]
        problems = {status: r for status, r in responses.items() if status >= "400"}
        assert "default" in problems, name
        signs_in = name in ("POST /auth/token", "POST /auth/refresh")
        assert ("401" in problems) == bool(operation["security"]) or signs_in
        for response in problems.values():
            media = response["content"]["application/problem+json"]
            assert media["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, shown in media["examples"].items():
                assert shown["value"]["code"] == code
                assert f"`{code}`" in response["description"]


async def test_the_document_says_that_questions_stand_alone_and_nothing_of_the_operator(
    api: Api,
) -> None:
    made = await document(api)
    assert "Each question stands alone" in made["info"]["description"]
    assert "as configured" not in str(made)


async def test_pages_refer_to_this_server_only(api: Api) -> None:
    for path in ("/docs", "/redoc"):
        page = (await api.get(path)).text
        assert "//" not in page.replace("<!--", "").replace("// ", "")
    assert "cdn.redoc" not in (await api.get("/docs/redoc.js")).text


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "kept"])
async def test_everything_works_under_a_path_that_a_proxy_cuts_off_or_keeps(
    databases: Databases, database_kind: str, tmp_path: Path, cut: bool
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url, server='root_path = "/api"')
    async with served(file) as (found, _), reverse_proxy(found.url, "/api") as proxied:
        api = Api(proxied if cut else f"{found.url}/api")
        try:
            made = await document(api)
            assert made["servers"] == [{"url": "/api"}]
            flow = made["components"]["securitySchemes"]["Account"]["flows"]["password"]
            assert flow["tokenUrl"] == "/api/auth/token"
            assert '"/api/docs/static/swagger-ui' in (await api.get("/docs")).text
            for path in ("/docs/style.css", "/docs/static/swagger-ui.css", "/redoc"):
                assert (await api.get(path)).status_code == 200
            ada = await api.account("Ada")
            assert (await api.get("/users/me", ada)).json()["username"] == "Ada"
            assert_problem(await api.get("/nowhere"), 404, "not_found")
        finally:
            await api.close()


async def test_switched_off_there_is_no_document_at_all(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url, server="docs = false")
    async with served(file) as (_, api):
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/static/favicon.png"):
            assert_problem(await api.get(path), 404, "not_found")
        assert (await api.register("ada", PASSWORD)).status_code == 201
