"""[auth]: signing, sessions and passwords."""

from pydantic import Field, SecretStr

from core.tables import Section


class AuthSettings(Section):
    """[auth] of the configuration file."""

    secret: SecretStr | None = None
    issuer: str = Field("vopros", min_length=1)
    audience: str = Field("vopros", min_length=1)
    access_token_seconds: int = Field(900, gt=0, le=86_400)
    clock_leeway_seconds: int = Field(10, ge=0, le=60)
    shortest_password_chars: int = Field(8, ge=8, le=128)
    hash_memory_kib: int = Field(19_456, ge=8_192)
    hash_rounds: int = Field(2, ge=1)
    hash_threads: int = Field(2, gt=0)
    hash_queue: int = Field(64, gt=0)
