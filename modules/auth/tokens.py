"""Access tokens: JWT by the profile of RFC 9068, signed with HS256 and nothing else."""

import base64
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.utils import force_bytes

from core.security import InvalidToken
from core.text import LARGEST_ID
from modules.auth.settings import AuthSettings, SigningKey

TYPE = "at+jwt"
ALGORITHM = "HS256"
LONGEST_TOKEN = 4096
_REQUIRED = ["iss", "aud", "sub", "sid", "jti", "iat", "exp"]
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_DECIMAL = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_HEADER = {"alg", "kid", "typ"}


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What an access token says: who, and in which session. Never the role."""

    user_id: int
    session_id: UUID


class AccessTokens:
    """Issues access tokens with the first key, and reads those of every key."""

    def __init__(self, settings: AuthSettings, keys: Sequence[SigningKey]) -> None:
        self._settings = settings
        self._kid = keys[0].kid
        # What a token says of its key finds one of these, or nothing: it is looked up
        # nowhere else.
        self._secrets = {key.kid: _prepared(key) for key in keys}
        # The first part of every token of a key, as it is written here: most tokens
        # need not be taken apart twice.
        self._heads = {self._head(kid): kid for kid in self._secrets}

    @property
    def lifetime(self) -> timedelta:
        return timedelta(seconds=self._settings.access_token_seconds)

    @property
    def leeway(self) -> timedelta:
        return timedelta(seconds=self._settings.clock_leeway_seconds)

    def issue(self, user_id: int, session_id: UUID, now: datetime) -> str:
        """A token for this session, valid from `now` for `lifetime`."""
        issued_at = int(now.timestamp())
        claims: dict[str, object] = {
            "iss": self._settings.issuer,
            "aud": self._settings.audience,
            "sub": str(user_id),
            "sid": str(session_id),
            "jti": secrets.token_urlsafe(12),
            "iat": issued_at,
            "exp": issued_at + self._settings.access_token_seconds,
        }
        return self._encoded(claims, self._kid)

    def read(self, token: str) -> AccessClaims:
        """Check everything a token says. Raises InvalidToken, without a reason."""
        if len(token) > LONGEST_TOKEN or not _COMPACT.fullmatch(token):
            raise InvalidToken
        try:
            claims = jwt.decode(
                token,
                self._secret_of(token),
                algorithms=[ALGORITHM],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.clock_leeway_seconds,
                options={"require": _REQUIRED, "strict_aud": True},
            )
            return self._claims(claims)
        except (jwt.PyJWTError, ArithmeticError, ValueError, TypeError, RecursionError):
            raise InvalidToken from None

    def _head(self, kid: str) -> str:
        return self._encoded({}, kid).partition(".")[0]

    def _encoded(self, claims: dict[str, object], kid: str) -> str:
        headers = {"typ": TYPE, "kid": kid}
        return jwt.encode(claims, self._secrets[kid], ALGORITHM, headers=headers)

    def _secret_of(self, token: str) -> jwt.PyJWK:
        """The secret of the key that the token names. Raises InvalidToken."""
        kid = self._heads.get(token.partition(".")[0])
        if kid is None:
            header = jwt.get_unverified_header(token)
            if set(header) != _HEADER or header["typ"] != TYPE:
                raise InvalidToken
            kid = header["kid"]
        secret = self._secrets.get(kid)
        if secret is None:
            raise InvalidToken
        return secret

    def _claims(self, claims: dict[str, object]) -> AccessClaims:
        expires, issued = claims["exp"], claims["iat"]
        if not isinstance(expires, int) or not isinstance(issued, int):
            raise InvalidToken
        if expires - issued > self._settings.access_token_seconds:
            raise InvalidToken
        subject = str(claims["sub"])
        if not _DECIMAL.fullmatch(subject) or int(subject) > LARGEST_ID:
            raise InvalidToken
        return AccessClaims(int(subject), UUID(str(claims["sid"])))


class _KeyChecked(HMACAlgorithm):
    """HMAC with a key that is not checked anew for every token: see `weakness`."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return force_bytes(key)


def _prepared(key: SigningKey) -> jwt.PyJWK:
    """A key that is read once."""
    secret = key.secret.get_secret_value().encode()
    written = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    prepared = jwt.PyJWK({"kty": "oct", "alg": ALGORITHM, "k": written})
    prepared.Algorithm = _KeyChecked(HMACAlgorithm.SHA256)
    return prepared
