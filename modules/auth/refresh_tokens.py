"""Refresh tokens: random, single use, and known to the database by their hash only."""

import hashlib
import secrets

_PREFIX = "vopros_rt_"
_RANDOM_BYTES = 32


def new_refresh_token() -> str:
    """256 random bits; by the beginning a scanner of leaked secrets can know it."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_of(token: str) -> str:
    """What is stored. Nobody guesses 256 bits, so there is nothing to slow down."""
    return hashlib.sha256(token.encode()).hexdigest()
