"""The one step that reads request bodies: strict JSON (RFC 8259), strict forms.

Ordinary parsers repair what they are given: UTF-16 is decoded, the last of two equal
keys wins, NaN passes. Here it is refused, before any router sees it.
"""

import asyncio
import json
import math
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import (
    DomainError,
    FieldError,
    Invalid,
    Malformed,
    TooLarge,
    TooSlow,
    UnsupportedMedia,
)
from core.problems import problem_response
from core.resources import JSON, Resources
from core.text import is_storable

DEEPEST = 32
MOST_FIELDS = 32


class MalformedBody(Malformed):
    """The body is not valid JSON, or not a valid form."""


class BodyTooLarge(TooLarge):
    """The body is larger than this server accepts."""


class ClientLeft(Exception):
    """The connection closed before the body was complete."""


class BodyGuard:
    """Reads a bounded body, checks it strictly, and hands the same bytes on."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        resources: Resources,
        longest_bytes: int,
        seconds: float,
    ) -> None:
        self._app = app
        self._resources = resources
        self._longest = longest_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._checked(scope, receive)
        except ClientLeft:
            return
        except DomainError as error:
            response = problem_response(error, scope["state"]["request_id"])
            if isinstance(error, (TooLarge, TooSlow)):
                # The rest of the body is still on its way and will not be read.
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        await self._app(scope, _replaying(body, receive), send)

    async def _checked(self, scope: Scope, receive: Receive) -> bytes:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        if _exceeds(announced, self._longest):
            raise BodyTooLarge
        body = await self._read(receive)
        if not body:
            return body
        accepted = self._resources.media_type(scope)
        _check_media_type(headers, accepted)
        if accepted == JSON:
            check_json(body)
        else:
            check_form(body)
        return body

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._longest:
                        raise BodyTooLarge
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise TooSlow from None


def _exceeds(announced: str, longest: int) -> bool:
    """Whether a Content-Length promises too much; the server checks its form."""
    return announced.isdecimal() and (len(announced) > 18 or int(announced) > longest)


def _replaying(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def _check_media_type(headers: Headers, accepted: str) -> None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("A compressed body is not accepted.")
    media_type, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace(" ", "").replace('"', "")
    if media_type.strip().lower() != accepted or charset not in ("", "charset=utf-8"):
        raise UnsupportedMedia(f"The body must be {accepted} in UTF-8.")


def check_json(body: bytes) -> None:
    """Raise MalformedBody for what is not strict JSON, Invalid for unstorable text."""
    try:
        value = _STRICT.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedBody("The body is not valid UTF-8.") from None
    except RecursionError:
        raise MalformedBody(f"The body nests deeper than {DEEPEST} levels.") from None
    except ValueError:
        raise MalformedBody("The body is not valid JSON.") from None
    if body.count(b"[") + body.count(b"{") > DEEPEST and _depth(value) > DEEPEST:
        raise MalformedBody(f"The body nests deeper than {DEEPEST} levels.")
    # Raw NUL and surrogates are no valid JSON and no valid UTF-8: only escapes remain.
    if b"\\u" in body and (bad := list(_unstorable(value, ("body",)))):
        raise Invalid(*bad)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBody("An object has the same key twice.")
    return found


def _refuse_constant(name: str) -> float:
    raise MalformedBody("NaN and Infinity are not JSON.")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise MalformedBody("A number is out of range.")
    return number


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
)


def _depth(value: Any) -> int:
    deepest, open_ = 0, [(value, 1)]
    while open_:
        item, depth = open_.pop()
        if isinstance(item, (dict, list)):
            deepest = max(deepest, depth)
            below = item.values() if isinstance(item, dict) else item
            open_ += [(child, depth + 1) for child in below]
    return deepest


def _unstorable(value: Any, loc: tuple[str | int, ...]) -> Iterable[FieldError]:
    """Every string, keys too, that a database or UTF-8 could not hold."""
    if isinstance(value, str) and not is_storable(value):
        message = "Must not contain NUL or unpaired surrogates."
        yield FieldError(loc, "invalid_text", message)
    elif isinstance(value, dict):
        for key, child in value.items():
            if is_storable(key):
                yield from _unstorable(child, (*loc, key[:64]))
            else:
                yield from _unstorable(key, loc)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _unstorable(child, (*loc, index))


_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def check_form(body: bytes) -> None:
    """Raise MalformedBody for what is no strict form, Invalid for unstorable text."""
    if not body.isascii() or _BAD_ESCAPE.search(body):
        raise MalformedBody("The form is not percent-encoded.")
    if body.count(b"&") >= MOST_FIELDS:
        raise MalformedBody(f"The form has more than {MOST_FIELDS} fields.")
    # "surrogateescape" marks the bytes that are not UTF-8 as unstorable.
    pairs = parse_qsl(
        body.decode("ascii"), keep_blank_values=True, errors="surrogateescape"
    )
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise InvalidForm("A field is given twice.", error="invalid_request")
    if bad := [
        e for name, value in pairs for e in _unstorable({name: value}, ("body",))
    ]:
        raise Invalid(*bad)


class InvalidForm(Malformed):
    """The form is not valid."""

    code = "invalid_request"
