"""The OpenAPI document as people should read it, and its pages without the internet."""

import copy
import inspect
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from core import errors
from core.body import BodyTooLarge, InvalidForm, MalformedBody
from core.db import Busy, DatabaseUnavailable, StorageFull
from core.errors import DomainError
from core.health import Health
from core.http import BadHost
from core.problems import Problem, problem_responses
from core.resources import FORM
from core.security import BEARER_SCHEME, Authenticator, InvalidToken, TokenMissing
from core.services import Services

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
_STATIC = Path(fastapi_offline.__file__).with_name("static")
# Nobody here has OAuth clients or scopes: Authorize shows user name and password only.
_STYLE = """\
@import url("static/swagger-ui.css");
.auth-container .scope-def,
.auth-container .wrapper:has(> [for="password_type"]),
.auth-container .wrapper:has(> [for="client_id_password"]),
.auth-container .wrapper:has(> [for="client_secret_password"]) { display: none; }
"""
_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"


def install(app: FastAPI, *, serve: bool) -> None:
    """Give the application its document; `serve` also gives it /docs and /redoc."""
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    if not serve:
        return
    pages = {
        "/": _root,
        "/openapi.json": _openapi,
        "/docs": _swagger,
        "/docs/style.css": _style,
        "/docs/redoc.js": _redoc_js,
        "/redoc": _redoc,
        "/favicon.ico": _favicon,
    }
    for path, page in pages.items():
        app.add_route(path, page, include_in_schema=False)
    static = _whole(StaticFiles(directory=_STATIC))
    app.mount("/docs/static", static, name="docs-static")


async def _root(request: Request) -> Response:
    return RedirectResponse(request.scope.get("root_path", "") + "/docs")


async def _openapi(request: Request) -> Response:
    root = request.scope.get("root_path", "")
    return JSONResponse(_below(root, request.app.openapi()))


async def _swagger(request: Request) -> Response:
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=TITLE,
        swagger_js_url=f"{root}/docs/static/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/style.css",
        swagger_favicon_url=f"{root}/docs/static/favicon.png",
        swagger_ui_parameters={
            "tryItOutEnabled": True,
            "validatorUrl": None,
            "defaultModelsExpandDepth": 0,
        },
    )


async def _redoc(request: Request) -> Response:
    root = request.scope.get("root_path", "")
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=TITLE,
        redoc_js_url=f"{root}/docs/redoc.js",
        redoc_favicon_url=f"{root}/docs/static/favicon.png",
        with_google_fonts=False,
    )


async def _style(request: Request) -> Response:
    return Response(_STYLE, media_type="text/css")


async def _redoc_js(request: Request) -> Response:
    return Response(_redoc_script(), media_type="text/javascript")


async def _favicon(request: Request) -> Response:
    return Response(_icon(), media_type="image/png")


@cache
def _icon() -> bytes:
    return (_STATIC / "favicon.png").read_bytes()


@cache
def _redoc_script() -> bytes:
    """ReDoc without its makers' logo: the page asks no other host for anything."""
    script = (_STATIC / "redoc.standalone.js").read_bytes()
    return script.replace(_LOGO, b"data:,")


def _below(root: str, made: dict[str, Any]) -> dict[str, Any]:
    """The document of an application that is served under the path `root`."""
    if not root:
        return made
    moved = copy.deepcopy(made) | {"servers": [{"url": root}]}
    for scheme in moved["components"].get("securitySchemes", {}).values():
        # Pages resolve it against the host, not against the server's path.
        for flow in scheme.get("flows", {}).values():
            flow["tokenUrl"] = root + flow["tokenUrl"]
    return moved


def _whole(files: ASGIApp) -> ASGIApp:
    """Serve files whole: what answers a bad Range is not a problem document."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise errors.NotAllowed("GET", "HEAD")
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        await files({**scope, "headers": headers}, receive, send)

    return serve


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: our problems in the place of FastAPI's own, notes added."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=TITLE,
            version=app.version,
            description=_description(app.state.services),
            routes=app.routes,
            tags=app.openapi_tags,
        )
        _polish(made, app.state.services)
        app.openapi_schema = made
    return app.openapi_schema


def tag_of(router_module: Any, tag: str) -> dict[str, str]:
    """A group of the document, described by the docstring of its router's module."""
    return {"name": tag, "description": inspect.getdoc(router_module) or ""}


def _description(services: Services) -> str:
    notes = services.get(Health).notes
    lines = [f"* {name}: {note}" for name, note in notes.items()]
    return "\n".join([DESCRIPTION, "This server:\n", *lines]) if lines else DESCRIPTION


def _polish(made: dict[str, Any], services: Services) -> None:
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for default in ("HTTPValidationError", "ValidationError"):
        schemas.pop(default, None)
    schemas.update(_problem_schemas())
    scheme = components.get("securitySchemes", {}).get(BEARER_SCHEME)
    if scheme is not None and Authenticator in services:
        url = services.get(Authenticator).token_url
        scheme["flows"]["password"]["tokenUrl"] = url
    for method, operation in _operations(made):
        _describe_success(operation, schemas)
        _describe_problems(operation, method)


@cache
def _problem_schemas() -> dict[str, Any]:
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = schema.pop("$defs")
    return parts | {"Problem": schema}


def _operations(made: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    methods = {"get", "put", "post", "delete", "patch"}
    for path in made["paths"].values():
        yield from ((method, path[method]) for method in path.keys() & methods)


def _describe_success(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Say what comes back, where the framework says "Successful Response"."""
    for status, response in operation["responses"].items():
        if response["description"] == "Successful Response":
            media = response.get("content", {}).get("application/json", {})
            name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
            described = schemas.get(name, {}).get("description")
            response["description"] = described or HTTPStatus(int(status)).phrase


def _describe_problems(operation: dict[str, Any], method: str) -> None:
    """Add the problems that no router has to list: they follow from the operation."""
    responses = operation["responses"]
    default = responses.get("422", {}).get("content", {})
    if "HTTPValidationError" in str(default.get("application/json")):
        del responses["422"]
    for status, problems in problem_responses(*_implied(operation, method)).items():
        described = responses.setdefault(str(status), problems)
        if described is not problems:
            _merge(described, problems)


def _implied(operation: dict[str, Any], method: str) -> Iterator[type[DomainError]]:
    yield from (BadHost, errors.HeadersTooLarge, errors.Internal)
    # Not for the others: a body that an operation does not describe is not sent to it.
    if "requestBody" in operation:
        if FORM in operation["requestBody"]["content"]:
            yield InvalidForm
        yield from (MalformedBody, errors.TooSlow, BodyTooLarge)
        yield errors.UnsupportedMedia
    if "requestBody" in operation or "parameters" in operation:
        yield errors.Invalid
    if "security" in operation:
        yield from (TokenMissing, InvalidToken, DatabaseUnavailable, Busy)
    if method != "get":
        yield StorageFull


def _merge(described: dict[str, Any], more: dict[str, Any]) -> None:
    described["description"] += f" {more['description']}"
    if "headers" in more:
        described["headers"] = described.get("headers", {}) | more["headers"]
    for media_type, content in more["content"].items():
        own = described.setdefault("content", {}).setdefault(media_type, content)
        own["examples"] |= content["examples"]
