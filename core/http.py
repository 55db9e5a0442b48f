"""Pure-ASGI steps around every request, a stranger's router included.

None derives from BaseHTTPMiddleware: under it a client's disconnect is never seen.
"""

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Coroutine, Iterable
from random import getrandbits
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import BrokenOff, ClientGone, HeadersTooLarge, Internal, Malformed
from core.logs import REQUEST_ID
from core.problems import problem_response

log = logging.getLogger(__name__)

T = TypeVar("T")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", re.ASCII)
_WATCHED_AFTER_SECONDS = 0.05
_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class BadHost(Malformed):
    """The Host header is missing, malformed or not one of this server's names."""


class RootPath:
    """Serves under a path, whether or not a reverse proxy has cut it off."""

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app = app
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["root_path"] = self._root
            # ASGI wants it in the path too; mounted applications are not found without.
            if not f"{scope['path']}/".startswith(f"{self._root}/"):
                scope["path"] = self._root + scope["path"]
        await self._app(scope, receive, send)


class RequestStep:
    """Gives each request its id, tells unforeseen errors, and writes the access log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        # For what sends thousands of pieces: no step has anything to add to a body.
        state["send_body"] = send
        REQUEST_ID.set(request_id)
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    *_common_headers(scope, message, request_id),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientGone:
            pass
        except BrokenOff as exc:
            # The server closes the connection: nobody takes the rest for the whole.
            _log_failure(exc.__cause__ or exc, request_id)
        except Exception as exc:
            _log_failure(exc, request_id)
            if not status:
                answer = problem_response(Internal(), request_id)
                await answer(scope, receive, send_with_headers)
        finally:
            _log_access(scope, status, time.perf_counter() - started, request_id)


def _log_failure(exc: BaseException, request_id: str) -> None:
    # Where, but not the message: a driver's words may repeat a row or a key.
    fields = {
        "request_id": request_id,
        "error": type(exc).__name__,
        "traceback": "".join(traceback.format_tb(exc.__traceback__)),
    }
    log.error("request.failed", extra=fields)


def _request_id(headers: Headers) -> str:
    offered = headers.get("x-request-id", "")
    # It is no secret: ordinary chance does, which asks the system for nothing.
    return offered if _REQUEST_ID.fullmatch(offered) else f"{getrandbits(128):032x}"


def _common_headers(
    scope: Scope, message: Message, request_id: str
) -> Iterable[tuple[bytes, bytes]]:
    yield b"x-request-id", request_id.encode()
    yield from _SAFE_HEADERS
    if not any(name == b"cache-control" for name, _ in message.get("headers", ())):
        yield b"cache-control", b"no-store"


def _log_access(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    route = scope.get("route")
    fields = {
        "method": scope["method"],
        # The template, never the path or the query: those may hold anything.
        "route": getattr(route, "path", None) or "(none)",
        "status": status or "(no response)",
        "ms": round(seconds * 1000, 1),
        "request_id": request_id,
        "user_id": scope["state"].get("user_id"),
    }
    log.info("request", extra=fields)


class HeaderGuard:
    """Refuses header floods and requests that are meant for another host."""

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Iterable[str], longest_headers_bytes: int
    ) -> None:
        """`allowed_hosts` empty means any well-formed one."""
        self._app = app
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._longest = longest_headers_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._objection(scope)):
            response = problem_response(error, scope["state"]["request_id"])
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _objection(self, scope: Scope) -> HeadersTooLarge | BadHost | None:
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > self._longest:
            return HeadersTooLarge()
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None or (self._allowed and found[1].lower() not in self._allowed):
            return BadHost()
        return None


class Caller:
    """The client at the other end of this request, who may hang up at any moment."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive

    async def unless_gone(self, call: Coroutine[Any, Any, T]) -> T:
        """Return what `call` returns, or cancel it and raise ClientGone at a hang-up.

        To be used once the body has been read. A plain handler is never cancelled by
        the server, so without this a model would go on answering nobody.
        """
        asker = asyncio.current_task()
        assert asker is not None
        watch = _Watch(self._receive, asker)
        try:
            return await call
        except asyncio.CancelledError:
            if watch.has_seen_it:
                asker.uncancel()
                raise ClientGone from None
            raise
        finally:
            watch.end()


class _Watch:
    """Cancels whoever asks once the client has hung up."""

    def __init__(self, receive: Receive, asker: asyncio.Task[Any]) -> None:
        self.has_seen_it = False
        self._receive = receive
        self._asker = asker
        self._watching: asyncio.Task[None] | None = None
        # A task costs more than a quick answer should: that comes before the timer.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_WATCHED_AFTER_SECONDS, self._begin)

    def end(self) -> None:
        """Whatever happens now is no business of the asker's any more."""
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
            # A cancelled task keeps its frames, and those keep us. In a circle they
            # would hold all of the request until the collector comes.
            self._watching = None

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_seen_it = True
        self._asker.cancel()
