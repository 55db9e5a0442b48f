"""The secret that signs access tokens: given by the operator, or made once."""

import logging
import stat
from collections.abc import Iterator
from itertools import pairwise

from core.db import database_url, sqlite_file
from core.errors import StartRefused
from core.layers import Finding
from core.secret_file import SECRET_BYTES, make_secret_file
from core.settings import DatabaseSettings, Settings
from modules.auth.settings import AuthSettings

log = logging.getLogger(__name__)

_FEWEST_DISTINCT = 8
# What documentation and examples everywhere write in the place of a secret.
_PLACEHOLDERS = (
    "changeme changethis change-me change_me placeholder example your-secret"
    " yoursecret your_secret secret_key secretkey secret-key insecure replace-me"
    " replaceme t0p-s3cr3t topsecret"
).split()


def check(settings: Settings) -> Iterator[Finding]:
    """Refuse a weak secret, and a missing one on any but the embedded server."""
    secret = settings.section(AuthSettings).secret
    origin = settings.raw.origin("auth", "secret")
    if secret is None:
        if not settings.is_embedded:
            hint = "set VOPROS_AUTH__SECRET or VOPROS_AUTH__SECRET_FILE"
            problem = "a signing secret is needed on this server"
            yield Finding(settings.raw.file, "auth", "secret", problem, hint)
    elif (weak := weakness(secret.get_secret_value())) is not None:
        hint = "make one with `openssl rand -hex 32`"
        yield Finding(origin, "auth", "secret", weak, hint)


def weakness(secret: str) -> str | None:
    """Why a secret must not be used; None for one that may be."""
    if len(secret.encode()) < SECRET_BYTES:
        return f"shorter than {SECRET_BYTES} bytes"
    lowered = secret.lower()
    if any(word in lowered for word in _PLACEHOLDERS):
        return "this is a placeholder, not a secret"
    if is_guessable(secret):
        return "this repeats itself: it can be guessed"
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


def signing_secret(settings: Settings) -> str:
    """The configured secret, or on the embedded server the one beside the database."""
    configured = settings.section(AuthSettings).secret
    if configured is not None:
        return configured.get_secret_value()
    url = database_url(settings.section(DatabaseSettings))
    path = sqlite_file(url).with_name("signing.secret")
    if make_secret_file(path):
        log.info("auth.secret_made", extra={"path": str(path)})
    try:
        secret = path.read_text(encoding="ascii").strip()
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as exc:
        raise StartRefused(f"{path}: the signing secret cannot be read") from exc
    if problem := weakness(secret):
        raise StartRefused(f"{path}: {problem}")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        fields = {"path": str(path), "mode": f"{mode:04o}", "hint": "chmod 600"}
        log.warning("auth.secret_exposed", extra=fields)
    return secret
