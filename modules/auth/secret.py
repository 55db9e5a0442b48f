"""The keys that sign access tokens: given by the operator, or one made once."""

import hashlib
import hmac
import logging
import stat
from collections.abc import Iterator
from itertools import pairwise

import jwt
from jwt.algorithms import HMACAlgorithm
from pydantic import SecretStr

from core.db import database_url, sqlite_file
from core.errors import StartRefused
from core.layers import Finding, read_secret
from core.secret_file import SECRET_BYTES, make_secret_file
from core.settings import DatabaseSettings, Settings
from modules.auth.settings import AuthSettings, SigningKey

log = logging.getLogger(__name__)

_FEWEST_DISTINCT = 8
# What documentation and examples everywhere write in the place of a secret.
_PLACEHOLDERS = (
    "changeme changethis change-me change_me placeholder example your-secret"
    " yoursecret your_secret secret_key secretkey secret-key insecure replace-me"
    " replaceme t0p-s3cr3t topsecret"
).split()


def check(settings: Settings) -> Iterator[Finding]:
    """Refuse weak secrets, and none at all on any but the embedded server."""
    auth = settings.section(AuthSettings)
    has_keys = auth.signing_keys or not settings.is_known("auth", "signing_keys")
    if auth.secret is not None:
        yield from _weak(settings, "secret", auth.secret)
    elif not has_keys and not settings.is_embedded:
        hint = "set VOPROS_AUTH__SECRET or VOPROS_AUTH__SECRET_FILE"
        problem = "a signing secret is needed on this server"
        yield Finding(settings.raw.file, "auth", "secret", problem, hint)
    kids = [key.kid for key in auth.signing_keys]
    for n, key in enumerate(auth.signing_keys):
        yield from _weak(settings, f"signing_keys[{n}].secret", key.secret)
        if (first := kids.index(key.kid)) != n:
            origin = settings.raw.origin("auth", "signing_keys")
            problem = f"signing_keys[{first}] is called so already"
            yield Finding(origin, "auth", f"signing_keys[{n}].kid", problem)


def _weak(settings: Settings, key: str, secret: SecretStr) -> Iterator[Finding]:
    if (weak := weakness(secret.get_secret_value())) is not None:
        origin = settings.raw.origin("auth", key.partition("[")[0])
        hint = "make one with `openssl rand -hex 32`"
        yield Finding(origin, "auth", key, weak, hint)


def weakness(secret: str) -> str | None:
    """Why a secret must not be used; None for one that may be."""
    if len(secret.encode()) < SECRET_BYTES:
        return f"shorter than {SECRET_BYTES} bytes"
    lowered = secret.lower()
    if any(word in lowered for word in _PLACEHOLDERS):
        return "this is a placeholder, not a secret"
    if is_guessable(secret):
        return "this repeats itself: it can be guessed"
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        return "this is a key of another kind, not a secret"
    return None


def is_guessable(secret: str) -> bool:
    """Whether a few characters, one sequence or a repeated piece make up the secret."""
    steps = {ord(after) - ord(before) for before, after in pairwise(secret)}
    halves = range(1, len(secret) // 2 + 1)
    return (
        len(set(secret)) < _FEWEST_DISTINCT
        or len(steps) < _FEWEST_DISTINCT
        or any(secret.startswith(secret[period:]) for period in halves)
    )


def signing_keys(settings: Settings) -> tuple[SigningKey, ...]:
    """All that verify, and first the one that signs.

    Without any in the configuration that is the one beside the database, which the
    embedded server makes. Raises StartRefused when it cannot be used.
    """
    auth = settings.section(AuthSettings)
    if auth.secret is not None:
        # Whoever moves from the short form to the list logs nobody out.
        return (*auth.signing_keys, _named(auth.secret))
    return auth.signing_keys or (_named(SecretStr(_kept_secret(settings))),)


def _named(secret: SecretStr) -> SigningKey:
    return SigningKey(kid=derived_kid(secret.get_secret_value()), secret=secret)


def derived_kid(secret: str) -> str:
    """The name of a secret that was given none: it reveals nothing of the secret."""
    return hmac.new(secret.encode(), b"kid", hashlib.sha256).hexdigest()[:16]


def _kept_secret(settings: Settings) -> str:
    url = database_url(settings.section(DatabaseSettings))
    path = sqlite_file(url).with_name("signing.secret")
    if make_secret_file(path):
        log.info("auth.secret_made", extra={"path": str(path)})
    try:
        secret = read_secret(path).strip()
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as exc:
        raise StartRefused(f"{path}: the signing secret cannot be read") from exc
    if problem := weakness(secret):
        raise StartRefused(f"{path}: {problem}")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        fields = {"path": str(path), "mode": f"{mode:04o}", "hint": "chmod 600"}
        log.warning("auth.secret_exposed", extra=fields)
    return secret
