"""The OpenAPI document: complete, ours, and true."""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from core.app import create_app
from core.settings import load_settings
from core.testing import running
from tests.conftest import Databases, make_admin, served
from tests.support.api import CANARY, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.upstream import Upstream

PROBLEM = "application/problem+json"
EVENTS = "text/event-stream"
OPEN = {
    ("post", "/auth/refresh"),
    ("post", "/auth/register"),
    ("post", "/auth/token"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
}
MAIN_STATUSES = {"401", "403", "404", "409", "422", "429", "503"}
Document = dict[str, Any]


@pytest.fixture
async def document(api: Api) -> Document:
    found: Document = (await api.get("/openapi.json")).json()
    return found


def operations(document: Document) -> Iterator[tuple[tuple[str, str], Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield (method, path), operation


def codes(operation: Document) -> set[str]:
    """The codes of all problems that an operation documents."""
    found = set(re.findall(r"`(\w+)`:", str(operation["responses"])))
    for response in operation["responses"].values():
        found |= set(response.get("content", {}).get(PROBLEM, {}).get("examples", ()))
    return found


def example(schema: Document, document: Document) -> Any:
    """What a page shows as the example of a schema; fails where there is none."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "examples" in schema:
        return schema["examples"][0]
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return example(document["components"]["schemas"][name], document)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], document)
    if schema.get("type") == "array":
        return [example(schema["items"], document)]
    properties = schema["properties"]
    return {name: example(below, document) for name, below in properties.items()}


async def test_the_page_sends_nothing_optional_by_itself(document: Document) -> None:
    schemas = document["components"]["schemas"]
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if not parameter["required"]:
                given = {"example", "examples"} & {*parameter, *parameter["schema"]}
                assert not given, (name, parameter["name"])
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert not {"example", "examples"} & content.keys(), name
            schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
            sent = example(schema, document)
            optional = sent.keys() - set(schema.get("required", ()))
            # Nothing else can be written there.
            assert optional <= {"grant_type"}, name


async def test_every_operation_is_described(document: Document) -> None:
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    seen = [key for key, _ in operations(document)]
    assert len(seen) == len(set(seen)) == 25
    for _, operation in operations(document):
        assert operation["summary"] and operation["description"]
        assert operation["tags"] and described.issuperset(operation["tags"])
        for parameter in operation.get("parameters", ()):
            named = parameter["in"] == "path" or parameter["description"]
            assert named, parameter


async def test_every_body_has_an_example_that_its_schema_accepts(
    document: Document,
) -> None:
    for key, operation in operations(document):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        responses = operation["responses"]
        bodies += [responses[code] for code in responses if code in ("200", "201")]
        assert bodies or "204" in responses, key
        for body in bodies:
            for name, media in body["content"].items():
                if name == EVENTS:
                    shown = media["example"]
                else:
                    shown = example(media["schema"], document)
                schema = media["schema"] | {"components": document["components"]}
                jsonschema_rs.validate(schema, shown)


IDS = {
    *("askQuestion", "streamAnswer", "listMyQuestions", "getLimits", "getQuestion"),
    *("deleteQuestion", "listQuestions", "getMe", "updateMe", "deleteMe", "exportMe"),
    *("listUsers", "getUser", "updateUser", "listProviders", "register", "logIn"),
    *("refreshToken", "listSessions", "endSession", "logOut", "logOutEverywhere"),
    *("changePassword", "getLiveness", "getReadiness"),
}
# What JSON Schema knows (2020-12), as far as it is used, and what OpenAPI 3.1 adds.
VOCABULARY = {
    *("type", "format", "title", "description", "default", "examples", "enum", "const"),
    *("minimum", "maximum", "minLength", "maxLength", "pattern", "writeOnly"),
    *("properties", "required", "additionalProperties", "items", "anyOf", "$ref"),
}


def subschemas(schema: Document) -> Iterator[Document]:
    """A schema and all that is in it."""
    yield schema
    below = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    below += [schema[key] for key in ("items", "additionalProperties") if key in schema]
    for found in below:
        if isinstance(found, dict):
            yield from subschemas(found)


async def test_operations_have_short_ids(document: Document) -> None:
    assert {operation["operationId"] for _, operation in operations(document)} == IDS


async def test_schemas_use_the_words_of_json_schema_only(document: Document) -> None:
    schemas = list(document["components"]["schemas"].values())
    for _, operation in operations(document):
        schemas += [found["schema"] for found in operation.get("parameters", ())]
    for schema in schemas:
        for part in subschemas(schema):
            assert part.keys() <= VOCABULARY, part


async def test_published_bounds_are_those_that_hold(
    api: Api, document: Document, admin: Account
) -> None:
    numbers = [
        (path, found)
        for (method, path), operation in operations(document)
        for found in operation.get("parameters", ())
        for schema in subschemas(found["schema"])
        if method == "get" and schema.get("type") == "integer"
    ]
    assert {found["name"] for _, found in numbers} == {
        *("limit", "user_id", "question_id"),
    }
    ids = document["paths"]["/questions/{question_id}"]["get"]["parameters"][0]
    for path, found in [*numbers, ("/questions/{question_id}", ids)]:
        (bounds,) = (s for s in subschemas(found["schema"]) if "minimum" in s)
        for value in (bounds["minimum"], bounds["maximum"]):
            answer = await _get(api, admin, path, found, value)
            assert answer.status_code in (200, 404), (path, value)
        answer = await _get(api, admin, path, found, bounds["maximum"] + 1)
        assert answer.status_code == 422, path


async def _get(
    api: Api, account: Account, path: str, parameter: Document, value: int
) -> Any:
    name = parameter["name"]
    if parameter["in"] == "path":
        return await api.get(path.replace(f"{{{name}}}", str(value)), account)
    return await api.http.get(path, params={name: value}, headers=account.auth)


async def test_operations_of_administrators_are_marked(document: Document) -> None:
    marked = {
        (method, path)
        for (method, path), operation in operations(document)
        if operation["summary"].endswith(" (administrators)")
    }
    assert marked == {
        ("get", "/users"),
        ("get", "/users/{user_id}"),
        ("patch", "/users/{user_id}"),
        ("get", "/questions"),
        ("get", "/providers"),
    }
    for key, operation in operations(document):
        assert ("x-required-role" in operation) == (key in marked)
        assert ("admins_only" in codes(operation)) == (key in marked)


async def test_the_operator_says_whose_the_server_is(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    about = """\
server_url = "https://vopros.example/api"
contact_name = "Help desk"
contact_email = "help@vopros.example"
license_name = "House rules"
license_url = "https://vopros.example/license"
terms_url = "https://vopros.example/terms"
"""
    file = write_config(tmp_path / "app.toml", url, openapi=about)
    async with served(file) as (_, api):
        made = (await api.get("/openapi.json")).json()
    assert made["servers"] == [{"url": "https://vopros.example/api"}]
    assert made["info"]["contact"] == {
        "name": "Help desk",
        "email": "help@vopros.example",
    }
    assert made["info"]["license"] == {
        "name": "House rules",
        "url": "https://vopros.example/license",
    }
    assert made["info"]["termsOfService"] == "https://vopros.example/terms"


async def test_what_needs_a_token_and_nothing_else_has_the_lock(
    document: Document,
) -> None:
    unlocked = {key for key, op in operations(document) if op["security"] == []}
    assert unlocked == OPEN
    scheme = document["components"]["securitySchemes"]["Account"]
    assert scheme["flows"]["password"]["tokenUrl"] == "/auth/token"


async def test_every_error_is_documented_as_a_problem_with_an_example(
    document: Document,
) -> None:
    assert "HTTPValidationError" not in str(document)
    assert "ValidationError" not in document["components"]["schemas"]
    for key, operation in operations(document):
        errors = {c: r for c, r in operation["responses"].items() if c >= "400"}
        assert list(errors) == sorted(errors)
        assert errors.keys() <= MAIN_STATUSES | {"400", "default"}, key
        assert any(code < "500" for code in errors), key
        signs_in = key[1] in ("/auth/token", "/auth/refresh")
        assert ("401" in errors) == (key not in OPEN or signs_in), key
        rest = errors["default"]["description"]
        assert "* 431 `headers_too_large`" in rest
        assert "* 500 `internal_error`" in rest
        if "requestBody" in operation:
            assert "422" in errors, key
            for code in ("408 `request_timeout`", "413 `body_too_large`"):
                assert f"* {code}" in rest
            assert "* 415 `unsupported_media_type`" in rest
        for code, response in errors.items():
            assert response["content"].keys() == {PROBLEM}
            media = response["content"][PROBLEM]
            assert media["schema"] == {"$ref": "#/components/schemas/Problem"}
            for name, shown in media["examples"].items():
                assert shown["value"]["code"] == name
                assert str(shown["value"]["status"]) == code or code == "default"
                schema = media["schema"] | {"components": document["components"]}
                jsonschema_rs.validate(schema, shown["value"])


async def test_headers_of_problems_and_of_repeats_are_documented(
    document: Document,
) -> None:
    for key, operation in operations(document):
        for code, response in operation["responses"].items():
            headers = response.get("headers", {})
            assert code not in ("429", "503") or "Retry-After" in headers, (key, code)
            for header in headers.values():
                assert header["description"] and header["schema"]
    for path, success in (("/questions", "201"), ("/questions/stream", "200")):
        operation = document["paths"][path]["post"]
        # What a question has ended with is told once more, whatever it was.
        for status in (success, "409", "422", "503", "default"):
            headers = operation["responses"][status]["headers"]
            assert "Idempotency-Replayed" in headers, status
        limited = operation["responses"]["429"]
        names = {"Retry-After", "RateLimit", "RateLimit-Policy"}
        assert limited["headers"].keys() == names
        assert "too_many_in_flight" in limited["content"][PROBLEM]["examples"]
        (key_header,) = operation["parameters"]
        assert (key_header["name"], key_header["in"], key_header["required"]) == (
            "Idempotency-Key",
            "header",
            False,
        )
        assert key_header["description"]
        assert codes(operation) >= {
            *("request_in_progress", "client_gone", "question_withdrawn"),
            *("idempotency_key_reused", "invalid_idempotency_key", "not_stored"),
            *("owner_lost", "server_shutdown", "minute_limit_reached"),
        }
    login = document["paths"]["/auth/token"]["post"]["responses"]["429"]
    assert login["headers"].keys() == {"Retry-After"}


async def test_a_password_is_shown_as_one_and_never_given_back(
    document: Document,
) -> None:
    given = {}
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            if "password" in field:
                given[name, field] = described["format"], described["writeOnly"]
    assert given == {
        ("Register", "password"): ("password", True),
        ("TokenForm", "password"): ("password", True),
        ("ChangePassword", "current_password"): ("password", True),
        ("ChangePassword", "new_password"): ("password", True),
    }


async def test_every_code_that_a_bad_body_gets_is_documented(
    api: Api, ada: Account, document: Document
) -> None:
    canary = b'{"a": "' + CANARY.encode() + b'"}'
    for (method, path), operation in operations(document):
        if "requestBody" not in operation:
            continue
        (right,) = operation["requestBody"]["content"]
        for content in (b"", b"{", b"%", canary, b"x" * 70_000):
            for media_type in (right, "text/plain"):
                headers = ada.auth | {"Content-Type": media_type}
                answer = await api.http.request(
                    method, path, content=content, headers=headers
                )
                if answer.is_success:
                    continue
                problem = assert_problem(answer, answer.status_code)
                assert problem["code"] in codes(operation)


async def test_pages_and_document_can_be_switched_off(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url, server="docs = false")
    async with served(file) as (_, api):
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/static/favicon.png"):
            assert_problem(await api.get(path), 404, "not_found")
        assert (await api.get("/health/live")).status_code == 200


ENDS_SESSION = ("/auth/logout", "/auth/logout-all")
# A slow machine is no failure.
FUZZ = """\
request-timeout = 300

[generation]
mode = "all"
max-examples = 25
deterministic = true

[phases]
stateful.enabled = false

[checks]
enabled = false
not_a_server_error.enabled = true
status_code_conformance.enabled = true
content_type_conformance.enabled = true
response_schema_conformance.enabled = true
"""


@pytest.mark.slow
async def test_A22_what_anybody_sends_is_answered_as_documented(
    databases: Databases,
    database_kind: str,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "schemathesis.toml").write_text(FUZZ)
    url = await databases.migrated(database_kind)
    file = write_config(folder / "app.toml", url, upstream.base_url)
    async with running(file) as found:
        api = Api(found.url)
        # The last administrator: may see everything, and cannot delete itself.
        admin = await make_admin(found, api)
        await api.ask(admin, "Is anybody there?")
        again = [await api.signed_in(admin.id, admin.username) for _ in ENDS_SESSION]
        await api.close()
        left_out = [word for path in ENDS_SESSION for word in ("--exclude-path", path)]
        output = await _schemathesis(found.url, admin.token, folder, *left_out)
        assert "23 selected / 25 total" in output, output
        for path, account in zip(ENDS_SESSION, again, strict=True):
            only = ("--include-path", path)
            await _schemathesis(found.url, account.token, folder, *only)


async def _schemathesis(url: str, token: str, folder: Path, *selection: str) -> str:
    program = Path(sys.executable).with_name("schemathesis")
    process = await asyncio.create_subprocess_exec(
        *(program, "run", f"{url}/openapi.json", "--no-color"),
        *("--header", f"Authorization: Bearer {token}"),
        *selection,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def test_routes_without_tags_may_share_the_name_of_a_function() -> None:
    settings = load_settings(None, {"VOPROS_MODULES__ENABLED": "users"})
    app = create_app(settings)
    for path in ("/one", "/two"):

        @app.get(path)
        async def look_around() -> None:
            """Look around."""

    paths = app.openapi()["paths"]
    ids = [paths[path]["get"]["operationId"] for path in ("/one", "/two")]
    assert ids[0] == "lookAround"
    assert len(set(ids)) == 2
