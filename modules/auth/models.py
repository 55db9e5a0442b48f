"""The tables of auth."""

import uuid
from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from core.db import Base, BigId, UtcDateTime, db_now

# By name: the table belongs to another module, whose models are not ours to import.
_USER = "users.id"
# SHA-256 in hexadecimal digits.
_DIGEST = 64


class CredentialRow(Base):
    """How somebody proves who they are."""

    __tablename__ = "auth_credentials"
    __table_args__ = (
        CheckConstraint("length(password_hash) <= 255", name="hash_length"),
    )

    user_id: Mapped[int] = mapped_column(
        BigId,
        ForeignKey(_USER, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    password_hash: Mapped[str] = mapped_column(String(255))
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())


class SessionRow(Base):
    """One login, for as long as it lasts."""

    __tablename__ = "auth_sessions"
    __table_args__ = (
        CheckConstraint("length(client) <= 200", name="client_length"),
        Index(None, "user_id", "created_at", "id"),
        Index(None, "user_id", "network_hash"),
        Index(None, "expires_at"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(BigId, ForeignKey(_USER, ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())
    last_used_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    client: Mapped[str | None] = mapped_column(String(200))
    # Where it was opened, hashed: enough to know the place again, and no secret from
    # whoever tries all addresses.
    network_hash: Mapped[str | None] = mapped_column(String(_DIGEST))


class RefreshTokenRow(Base):
    """A refresh token; kept after its use, or a copy would go unnoticed."""

    __tablename__ = "auth_refresh_tokens"
    __table_args__ = (
        Index(None, "session_id"),
        # Of a session's thousands of tokens one is unused, and that one is looked for.
        Index(
            "ix_auth_refresh_tokens_unused",
            "session_id",
            postgresql_where=text("used_at IS NULL"),
            sqlite_where=text("used_at IS NULL"),
        ),
    )

    token_hash: Mapped[str] = mapped_column(String(_DIGEST), primary_key=True)
    session_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("auth_sessions.id", ondelete="CASCADE")
    )
    issued_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AttemptsRow(Base):
    """What somebody, or somewhere, has tried of late.

    The key is not readable, but no secret: who knows a name or an address finds it.
    """

    __tablename__ = "auth_login_attempts"
    __table_args__ = (Index(None, "window_ends_at"),)

    key_hash: Mapped[str] = mapped_column(String(_DIGEST), primary_key=True)
    failures: Mapped[int]
    window_ends_at: Mapped[datetime] = mapped_column(UtcDateTime)
    blocked_until: Mapped[datetime] = mapped_column(UtcDateTime)
