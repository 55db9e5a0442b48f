"""The pages that show the API's document, served without the internet."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import NotAllowed
from core.openapi import TITLE, document

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
    moved = copy.deepcopy(made)
    if moved["servers"] == [{"url": "/"}]:
        moved["servers"] = [{"url": root}]
    for scheme in moved["components"].get("securitySchemes", {}).values():
        # Pages resolve it against the host, not against the server's path.
        for flow in scheme.get("flows", {}).values():
            flow["tokenUrl"] = root + flow["tokenUrl"]
    return moved


def _whole(files: ASGIApp) -> ASGIApp:
    """Serve files whole: what answers a bad Range is not a problem document."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise NotAllowed("GET", "HEAD")
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        await files({**scope, "headers": headers}, receive, send)

    return serve
