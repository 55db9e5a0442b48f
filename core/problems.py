"""RFC 9457: how every error leaves the house, and how the document lists it.

This is the only table from a kind of error to an HTTP status.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.client import responses
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core.core_schema import ErrorType
from starlette.exceptions import HTTPException
from starlette.responses import Response

from core import errors
from core.errors import DomainError, FieldError, Invalid
from core.security import InvalidToken

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_DRAFT = "draft-ietf-httpapi-ratelimit-headers-10"
_RETRY_AFTER = {
    "Retry-After": {
        "description": "After how many seconds to try again.",
        "schema": {"type": "integer", "examples": [5]},
    }
}
_RATE_LIMIT = {
    "RateLimit-Policy": {
        "description": f"The limits that hold for you ({_DRAFT}).",
        "schema": {"type": "string", "examples": ['"per_minute";q=20;w=60']},
    },
    "RateLimit": {
        "description": "What is left of each, and for how many seconds.",
        "schema": {"type": "string", "examples": ['"per_minute";r=0;t=42']},
    },
}
MOST_ERRORS = 32
REPLAYED = {"Idempotency-Replayed": "true"}
"""The header of whatever was answered before, and is not done again."""

STATUS: Mapping[type[DomainError], int] = {
    errors.Malformed: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.NotAllowed: 405,
    errors.TooSlow: 408,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.Invalid: 422,
    errors.TooMany: 429,
    errors.HeadersTooLarge: 431,
    errors.Internal: 500,
    errors.UpstreamFailed: 502,
    errors.Unavailable: 503,
    errors.UpstreamTimedOut: 504,
}


class ProblemField(BaseModel):
    """One field that is not valid."""

    loc: list[str | int] = Field(examples=[["body", "content"]])
    code: str = Field(examples=["blank"])
    message: str = Field(examples=["Must not be blank."])


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ProblemField] | None = None


def status_of(error: DomainError | type[DomainError]) -> int:
    """The HTTP status of an error's kind."""
    kind = error if isinstance(error, type) else type(error)
    return next((STATUS[base] for base in kind.__mro__ if base in STATUS), 500)


def problem_document(error: DomainError, request_id: str) -> dict[str, Any]:
    """The body that tells `error`."""
    document = _document(
        status_of(error), error.code, error.title, error.detail, request_id
    )
    if isinstance(error, Invalid):
        document["errors"] = [
            {"loc": list(e.loc), "code": e.code, "message": e.message}
            # A body of thousands of mistakes is not worth an answer of megabytes.
            for e in error.errors[:MOST_ERRORS]
        ]
    return document | error.members


def _document(
    status: int, code: str, title: str, detail: str, request_id: str
) -> dict[str, Any]:
    return {
        "type": f"urn:vopros:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        # Names this occurrence without repeating the path that was sent.
        "instance": f"urn:vopros:request:{request_id}",
        "code": code,
        "request_id": request_id,
    }


def problem_response(error: DomainError, request_id: str) -> Response:
    """The response that tells `error`."""
    headers: dict[str, str] = {}
    if isinstance(error, errors.Unauthenticated):
        reason = ' error="invalid_token"' if isinstance(error, InvalidToken) else ""
        headers["WWW-Authenticate"] = f"Bearer{reason}"
    if isinstance(error, errors.NotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.is_replayed:
        headers |= REPLAYED
    if isinstance(error, errors.TooMany) and error.limits:
        headers |= _limit_headers(error.limits)
    return _response(problem_document(error, request_id), headers)


def _limit_headers(limits: Iterable[errors.RateLimit]) -> dict[str, str]:
    """As draft-ietf-httpapi-ratelimit-headers-10 writes them."""
    policies, states = [], []
    for limit in limits:
        policy = f'"{limit.name}";q={limit.most}'
        if limit.unit != "requests":
            policy += f';qu="{limit.unit}"'
        if limit.window_seconds is not None:
            policy += f";w={limit.window_seconds}"
        policies.append(policy)
        state = f'"{limit.name}";r={limit.remaining}'
        if limit.resets_in_seconds is not None:
            state += f";t={limit.resets_in_seconds}"
        states.append(state)
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}


def _response(document: dict[str, Any], headers: dict[str, str]) -> Response:
    body = json.dumps(document, ensure_ascii=False)
    return Response(body, document["status"], headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error that reaches the application with a problem document."""

    async def tell(request: Request, exc: Exception) -> Response:
        return problem_response(as_domain_error(exc), request.state.request_id)

    async def tell_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        if exc.status_code < 400:
            return Response(status_code=exc.status_code, headers=exc.headers)
        if exc.status_code not in STATUS.values():
            return _untold(exc, request.state.request_id)
        response = await tell(request, exc)
        if retry_after := (exc.headers or {}).get("Retry-After"):
            response.headers["Retry-After"] = retry_after
        return response

    app.add_exception_handler(DomainError, tell)
    app.add_exception_handler(RequestValidationError, tell)
    app.add_exception_handler(HTTPException, tell_http)


def as_domain_error(exc: Exception) -> DomainError:
    """Say a framework's error in our words; anything unknown is Internal."""
    if isinstance(exc, DomainError):
        return exc
    if isinstance(exc, RequestValidationError):
        return Invalid(*(_field_error(error) for error in exc.errors()))
    if isinstance(exc, HTTPException):
        if exc.status_code == STATUS[errors.NotAllowed]:
            named = (exc.headers or {}).get("Allow", "").split(",")
            return errors.NotAllowed(*({name.strip() for name in named} - {""}))
        for kind, status in STATUS.items():
            if status == exc.status_code:
                return kind()
    return errors.Internal()


def _untold(exc: HTTPException, request_id: str) -> Response:
    """A status that no kind of ours has, in a module of somebody else's.

    Its words may repeat anything, so they stay here; when to try again does not.
    """
    phrase = f"{responses.get(exc.status_code, 'Failed')}."
    code = f"http_{exc.status_code}"
    headers = {k: v for k, v in (exc.headers or {}).items() if k == "Retry-After"}
    document = _document(exc.status_code, code, phrase, phrase, request_id)
    return _response(document, headers)


# Our wording of pydantic's errors; `{}` is filled from the limits it names.
_WORDING: Mapping[str, tuple[str, str]] = {
    "missing": ("required", "This field is required."),
    "extra_forbidden": ("unknown_field", "There is no such field."),
    "string_type": ("not_text", "Must be text."),
    "string_too_short": ("too_short", "Must have at least {min_length} characters."),
    "string_too_long": ("too_long", "Must have at most {max_length} characters."),
    "string_unicode": ("invalid_text", "Must be valid Unicode text."),
    # Of lists, and of secrets, whose length is looked at from outside.
    "too_short": ("too_short", "Must not be shorter than {min_length}."),
    "too_long": ("too_long", "Must not be longer than {max_length}."),
    "bool_type": ("not_true_or_false", "Must be true or false."),
    "bool_parsing": ("not_true_or_false", "Must be true or false."),
    "int_type": ("not_a_number", "Must be a whole number."),
    "int_parsing": ("not_a_number", "Must be a whole number."),
    "int_parsing_size": ("out_of_range", "This number is out of range."),
    "greater_than": ("out_of_range", "Must be more than {gt}."),
    "greater_than_equal": ("out_of_range", "Must be at least {ge}."),
    "less_than": ("out_of_range", "Must be less than {lt}."),
    "less_than_equal": ("out_of_range", "Must be at most {le}."),
    "enum": ("not_one_of", "Must be one of {expected}."),
    "literal_error": ("not_one_of", "Must be one of {expected}."),
    "timezone_aware": ("needs_time_zone", "Must carry a time zone, such as Z."),
    "model_attributes_type": ("not_an_object", "Must be a JSON object."),
    "model_type": ("not_an_object", "Must be a JSON object."),
    "dict_type": ("not_an_object", "Must be a JSON object."),
    "list_type": ("not_a_list", "Must be a list."),
}
_BUILT_IN = frozenset(get_args(ErrorType))
_LONGEST_NAME = 64


def _field_error(error: Mapping[str, Any]) -> FieldError:
    loc = tuple(
        part[:_LONGEST_NAME] if isinstance(part, str) else part for part in error["loc"]
    )
    kind = error["type"]
    if kind in _WORDING:
        code, message = _WORDING[kind]
        return FieldError(loc, code, message.format_map(error.get("ctx") or {}))
    if kind.startswith(("datetime", "date", "time")):
        return FieldError(loc, "not_a_time", "Must be a date and time (RFC 3339).")
    if kind in _BUILT_IN or kind == "json_invalid":
        return FieldError(loc, "invalid", "This is not valid.")
    # A PydanticCustomError of a schema: its words are ours already.
    return FieldError(loc, kind, error["msg"])


def problem_responses(*kinds: type[DomainError]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route: these problems, with an example of each."""
    grouped: dict[int | str, list[type[DomainError]]] = {}
    for kind in kinds:
        grouped.setdefault(status_of(kind), []).append(kind)
    return {status: describe_status(group) for status, group in grouped.items()}


def describe_status(kinds: Iterable[type[DomainError]]) -> dict[str, Any]:
    """One status of an operation in the OpenAPI document."""
    kinds = list(kinds)
    examples = {
        kind.code: {"summary": kind.title, "value": _example(kind)} for kind in kinds
    }
    description = " ".join(f"`{kind.code}`: {kind.title}" for kind in kinds)
    schema = {"$ref": "#/components/schemas/Problem"}
    media = {"schema": schema, "examples": examples}
    described: dict[str, Any] = {
        "description": description or HTTPStatus(status_of(kinds[0])).phrase,
        "content": {MEDIA_TYPE: media},
    }
    if headers := _headers_of(kinds):
        described["headers"] = headers
    return described


def _headers_of(kinds: Iterable[type[DomainError]]) -> dict[str, Any]:
    """What some problems of a status carry besides their body."""
    found: dict[str, Any] = {}
    for kind in kinds:
        if kind.retry_after_seconds is not None:
            found |= _RETRY_AFTER
        if issubclass(kind, errors.TooMany) and kind.tells_limits:
            found |= _RATE_LIMIT
    return found


def _example(kind: type[DomainError]) -> dict[str, Any]:
    if kind is Invalid:
        field = FieldError(("body", "field"), "required", "This field is required.")
        return problem_document(kind(field), "3f1c9a52")
    return problem_document(kind(), "3f1c9a52")
