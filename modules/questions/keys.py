"""The Idempotency-Key of a request (draft-ietf-httpapi-idempotency-key-header)."""

import re
from typing import Any

from fastapi import Request

from core.errors import Malformed

# Visible ASCII, and spaces within; quotes count like any other character.
_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)
_HEADER = "Idempotency-Key"


class InvalidIdempotencyKey(Malformed):
    """The Idempotency-Key must be 1 to 255 characters of visible ASCII, sent once."""


def idempotency_key(request: Request) -> str | None:
    """The request's key, None without one. Raises InvalidIdempotencyKey."""
    given = request.headers.getlist(_HEADER)
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidIdempotencyKey
    return given[0]


# FastAPI would read it too, and tell with 422 what is to be 400.
DESCRIBED: dict[str, Any] = {
    "parameters": [
        {
            "name": _HEADER,
            "in": "header",
            "required": False,
            "description": (
                "Unique key (for example a UUID) that makes retries safe: a request"
                " with the same key is processed once. Visible ASCII, spaces within."
            ),
            # No example: the documentation's page would send it with every question.
            # No pattern: to make up keys from it takes test programs minutes.
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        }
    ]
}
