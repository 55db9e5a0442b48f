"""The table of users."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Identity, String, true
from sqlalchemy.orm import Mapped, mapped_column

from core.db import Base, BigId, UtcDateTime, db_now


class UserRow(Base):
    """Somebody who exists."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'admin')", name="role"),
        CheckConstraint("length(username) BETWEEN 3 AND 32", name="username_length"),
        # An id is never given out twice, so an old token cannot mean a new user.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, Identity(always=True), primary_key=True)
    username: Mapped[str] = mapped_column(String(32))
    username_key: Mapped[str] = mapped_column(String(32), unique=True)
    role: Mapped[str] = mapped_column(String(16), server_default="user")
    is_active: Mapped[bool] = mapped_column(server_default=true())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())
