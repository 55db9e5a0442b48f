"""[auth]: signing, sessions and passwords."""

from typing import Literal

from pydantic import Field, SecretStr

from core.tables import Section


class SigningKey(Section):
    """A key that signs or verifies access tokens."""

    kid: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Its name, told in every token it signs; no secret, and never used again."""
    secret: SecretStr
    """At least 32 bytes."""


_TEN_YEARS = 10 * 365 * 86_400


class AuthSettings(Section):
    """[auth] of the configuration file."""

    secret: SecretStr | None = None
    """Signs access tokens: at least 32 bytes. Made by itself on the embedded server
    only."""
    signing_keys: tuple[SigningKey, ...] = ()
    """Instead of `secret`, or beside it: the first signs, all verify, and so does
    `secret`."""
    registration: Literal["open", "closed"] = "open"
    """Whether anybody may make an account, or only the operator."""
    issuer: str = Field("vopros", min_length=1)
    """Who issues the tokens."""
    audience: str = Field("vopros", min_length=1)
    """For whom the tokens are."""
    access_token_seconds: int = Field(900, gt=0, le=86_400)
    """How long an access token is good."""
    session_idle_seconds: int = Field(14 * 86_400, gt=0, le=_TEN_YEARS)
    """How long a session lasts that is not refreshed; 14 days."""
    session_absolute_seconds: int = Field(90 * 86_400, gt=0, le=_TEN_YEARS)
    """How long a session lasts at most, however often it is refreshed; 90 days."""
    refresh_grace_seconds: int = Field(10, ge=0, le=10)
    """How long a refresh token is accepted again after its first use: two tabs, or a
    lost response, do not end the session. 0 ends it at the first reuse."""
    login_attempts: int = Field(5, ge=0, le=100)
    """Wrong passwords for one account, within a day, before there is a wait: doubling
    from 32 seconds to 15 minutes; 0: no limit."""
    network_login_attempts: int = Field(30, ge=0)
    """The same for one client network, within 15 minutes."""
    network_registrations: int = Field(100, ge=0)
    """Registrations from one client network, within an hour, before there is a wait."""
    clock_leeway_seconds: int = Field(10, ge=0, le=60)
    """How far the clocks of two servers may differ."""
    shortest_password_chars: int = Field(8, ge=8, le=128)
    """15 or more is better."""
    hash_memory_kib: int = Field(19_456, ge=8_192)
    """argon2id; a login takes this much memory for about 30 ms."""
    hash_rounds: int = Field(2, ge=1)
    """argon2id's passes over that memory."""
    hash_threads: int = Field(2, gt=0)
    """How many passwords are hashed at a time."""
    hash_queue: int = Field(64, gt=0)
    """How many logins may wait for a thread; then 503."""
