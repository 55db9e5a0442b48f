"""The OpenAPI document: FastAPI's, with our problems in the place of its own."""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute

from core import errors
from core.body import BodyTooLarge, InvalidForm, MalformedBody
from core.db import Busy, DatabaseUnavailable, StorageFull
from core.errors import DomainError
from core.http import BadHost
from core.problems import MEDIA_TYPE, Problem, problem_responses
from core.resources import FORM
from core.security import (
    ADMIN,
    BEARER_SCHEME,
    AdminsOnly,
    Authenticator,
    InvalidToken,
    TokenMissing,
    current_admin,
    depends_on,
)
from core.services import Services
from core.settings import OpenApiSettings

TITLE = "Vopros"
DESCRIPTION = """\
Ask a question and get an answer from the language model that the operator has chosen.

1. `POST /auth/register` makes your account.
2. **Authorize** takes your user name and password, gets an access token and sends it \
with every call from this page. When calls begin to answer 401 it has expired: log out \
there and authorize again.
3. `POST /questions` asks; `GET /questions/me` shows your last questions.

A padlock marks what needs step 2. Each question stands alone: the model is not told \
of earlier ones.

Every error is a problem document (RFC 9457, `application/problem+json`) with a `code` \
for programs, a `detail` for people and the `request_id` to quote.
"""
# Those that a client has to tell apart; what else can go wrong is listed in `default`.
_MAIN_STATUSES = {"401", "403", "404", "409", "422", "429", "503"}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: our problems in the place of FastAPI's own, notes added."""
    if app.openapi_schema is None:
        services: Services = app.state.services
        made = get_openapi(
            title=TITLE,
            version=app.version,
            description=DESCRIPTION,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        settings = services.get(OpenApiSettings)
        made["info"] |= settings.info
        made["servers"] = [{"url": settings.server_url or "/"}]
        _polish(made, app)
        app.openapi_schema = made
    return app.openapi_schema


def tag_of(router_module: Any, tag: str) -> dict[str, str]:
    """A group of the document, described by the docstring of its router's module."""
    return {"name": tag, "description": inspect.getdoc(router_module) or ""}


def _polish(made: dict[str, Any], app: FastAPI) -> None:
    services: Services = app.state.services
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for default in ("HTTPValidationError", "ValidationError"):
        schemas.pop(default, None)
    schemas.update(_problem_schemas())
    scheme = components.get("securitySchemes", {}).get(BEARER_SCHEME)
    if scheme is not None and Authenticator in services:
        url = services.get(Authenticator).token_url
        scheme["flows"]["password"]["tokenUrl"] = url
    operations = list(_operations(made, app.routes))
    _shorten_ids(operations)
    for operation in operations:
        _describe_access(operation)
        _describe_success(operation.described, schemas)
        _describe_problems(operation)


class _Operation(NamedTuple):
    """An operation of the document, and the route that serves it."""

    method: str
    described: dict[str, Any]
    route: RouteContext

    @property
    def is_for_administrators(self) -> bool:
        return depends_on(self.route, current_admin)


def _operations(
    made: dict[str, Any], routes: Sequence[BaseRoute]
) -> Iterator[_Operation]:
    for route in iter_route_contexts(routes):
        path = made["paths"].get(route.path_format, {})
        for method in sorted(route.methods or ()):
            if described := path.get(method.lower()):
                yield _Operation(method, described, route)


def _shorten_ids(operations: Iterable[_Operation]) -> None:
    """Name each operation after its function; generated clients call it so."""
    taken: set[str] = set()
    for _, described, route in operations:
        if getattr(route, "operation_id", None):
            continue  # A router has given it.
        short = _camel_case(route.name or "")
        if short in taken and described.get("tags"):
            short = _camel_case(f"{described['tags'][0]}_{route.name}")
        if short not in taken:
            described["operationId"] = short
        taken.add(described["operationId"])


def _camel_case(name: str) -> str:
    first, *others = re.split(r"[^A-Za-z0-9]+", name)
    return first + "".join(word.capitalize() for word in others)


def _describe_access(operation: _Operation) -> None:
    described = operation.described
    # Said of every operation, or a reader could not tell it from one forgotten.
    described.setdefault("security", [])
    if operation.is_for_administrators:
        described["summary"] += " (administrators)"
        described["x-required-role"] = ADMIN


@cache
def _problem_schemas() -> dict[str, Any]:
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = schema.pop("$defs")
    return parts | {"Problem": schema}


def _describe_success(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Say what comes back, where the framework says "Successful Response"."""
    for status, response in operation["responses"].items():
        for media in response.get("content", {}).values():
            # FastAPI adds `type: string` to whatever is no JSON, a union too.
            if "anyOf" in media.get("schema", {}):
                media["schema"].pop("type", None)
        if response["description"] == "Successful Response":
            media = response.get("content", {}).get("application/json", {})
            name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
            described = schemas.get(name, {}).get("description")
            response["description"] = described or HTTPStatus(int(status)).phrase


def _describe_problems(operation: _Operation) -> None:
    """Add the problems that no router has to list: they follow from the operation."""
    responses = operation.described["responses"]
    default = responses.get("422", {}).get("content", {})
    if "HTTPValidationError" in str(default.get("application/json")):
        del responses["422"]
    for status, problems in problem_responses(*_implied(operation)).items():
        described = responses.setdefault(str(status), problems)
        if described is not problems:
            _merge(described, problems)
    _fold(responses)


def _implied(operation: _Operation) -> Iterator[type[DomainError]]:
    described = operation.described
    yield from (BadHost, errors.HeadersTooLarge, errors.Internal)
    # Not for the others: a body that an operation does not describe is not sent to it.
    if "requestBody" in described:
        if FORM in described["requestBody"]["content"]:
            yield InvalidForm
        yield from (MalformedBody, errors.TooSlow, BodyTooLarge)
        yield errors.UnsupportedMedia
    if "requestBody" in described or "parameters" in described:
        yield errors.Invalid
    if described["security"]:
        yield from (TokenMissing, InvalidToken, DatabaseUnavailable, Busy)
    if operation.is_for_administrators:
        yield AdminsOnly
    if operation.method != "GET":
        yield StorageFull


def _merge(described: dict[str, Any], more: dict[str, Any]) -> None:
    described["description"] += f" {more['description']}"
    if "headers" in more:
        described["headers"] = described.get("headers", {}) | more["headers"]
    for media_type, content in more["content"].items():
        own = described.setdefault("content", {}).setdefault(media_type, content)
        own["examples"] |= content["examples"]


def _fold(responses: dict[str, Any]) -> None:
    """Gather in `default` the problems that are much the same for every operation."""
    main = _MAIN_STATUSES & responses.keys()
    if not any(status < "500" for status in main):
        main.add("400")
    described = sorted(responses.items())
    responses.clear()
    responses.update((s, found) for s, found in described if s < "400" or s in main)
    problems = [found for s, found in described if s not in responses]
    lines = [
        f"* {shown['value']['status']} `{code}`: {shown['summary']}"
        for problem in problems
        for code, shown in problem["content"][MEDIA_TYPE]["examples"].items()
    ]
    default: dict[str, Any] = {
        "description": "\n".join(["Any other problem:\n", *lines]),
        "content": problem_responses(errors.Internal)[500]["content"],
    }
    headers = [p["headers"] for p in problems if "headers" in p]
    if headers:
        default["headers"] = {k: v for found in headers for k, v in found.items()}
    responses["default"] = default
