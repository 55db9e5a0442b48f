"""Access tokens made by hand: no library would sign most of what tests need."""

import base64
import hashlib
import hmac
import json
from typing import Any

from tests.support.api import Account
from tests.support.config import SECRET

Claims = dict[str, Any]


def derived_kid(secret: str) -> str:
    """The name of a key that the configuration gives none."""
    return hmac.new(secret.encode(), b"kid", hashlib.sha256).hexdigest()[:16]


KID = derived_kid(SECRET)
HEADER = {"alg": "HS256", "typ": "at+jwt", "kid": KID}


def encode(part: bytes | str | dict[str, Any]) -> bytes:
    if isinstance(part, dict):
        part = json.dumps(part)
    data = part.encode() if isinstance(part, str) else part
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign(
    claims: bytes | str | dict[str, Any],
    header: bytes | str | dict[str, Any] = HEADER,
    *,
    secret: str = SECRET,
    digest: str = "sha256",
) -> str:
    signed = encode(header) + b"." + encode(claims)
    mac = hmac.new(secret.encode(), signed, digest).digest()
    return (signed + b"." + encode(mac)).decode()


def header_of(who: Account) -> dict[str, Any]:
    return _decoded(who.token.split(".")[0])


def claims_of(who: Account) -> Claims:
    return _decoded(who.token.split(".")[1])


def _decoded(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=="))
    return found
