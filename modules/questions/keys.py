"""The Idempotency-Key of a request (draft-ietf-httpapi-idempotency-key-header)."""

import re
from typing import Annotated

from fastapi import Depends, Header, Request

from core.errors import Malformed

# Visible ASCII, and spaces within; quotes count like any other character.
_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)


class InvalidIdempotencyKey(Malformed):
    """The Idempotency-Key must be 1 to 255 characters of visible ASCII, sent once."""


async def _request_key(
    request: Request,
    _: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description=(
                "Unlike every other of yours, such as a UUID: the same request sent"
                " with it again is not done twice. 1 to 255 characters of ASCII."
            ),
            examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        ),
    ] = None,
) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidIdempotencyKey
    return given[0]


RequestKey = Annotated[str | None, Depends(_request_key)]
