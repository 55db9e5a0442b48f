"""The table of questions."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Identity, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from core.db import Base, BigId, UtcDateTime, db_now


class Status(StrEnum):
    """Where a question is; what has left `pending` never changes again."""

    PENDING = "pending"
    ANSWERED = "answered"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


# State and columns tell the same story, on both databases.
_STATE = (
    "(status = 'pending' AND answer IS NULL AND answered_at IS NULL"
    " AND error_code IS NULL)"
    " OR (status = 'answered' AND answer IS NOT NULL AND answered_at IS NOT NULL"
    " AND error_code IS NULL)"
    " OR (status IN ('failed', 'interrupted') AND answered_at IS NULL"
    " AND error_code IS NOT NULL)"
)


class QuestionRow(Base):
    """One question, who asked it, and what became of it."""

    __tablename__ = "questions"
    __table_args__ = (
        CheckConstraint(_STATE, name="state"),
        CheckConstraint("length(content) BETWEEN 1 AND 65536", name="content_length"),
        CheckConstraint("length(answer) <= 1048576", name="answer_length"),
        CheckConstraint(
            "length(idempotency_key) BETWEEN 1 AND 255", name="idempotency_key_length"
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(
        # By name: the table belongs to another module.
        BigId,
        ForeignKey("users.id", ondelete="CASCADE"),
    )
    content: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), server_default=Status.PENDING)
    answer: Mapped[str | None] = mapped_column(Text)
    provider: Mapped[str | None] = mapped_column(String(100))
    model: Mapped[str | None] = mapped_column(String(200))
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    error_code: Mapped[str | None] = mapped_column(String(64))
    idempotency_key: Mapped[str] = mapped_column(String(255))
    asked_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())
    answered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Who was asked, in order; not set before they have been, or by an older release.
    attempts: Mapped[list[dict[str, Any]] | None] = mapped_column(
        JSON(none_as_null=True)
    )


# "The last three" of anybody costs the same however long the history is.
Index("ix_questions_user_id_id", QuestionRow.user_id, QuestionRow.id.desc())
Index(
    "uq_questions_user_id_idempotency_key",
    QuestionRow.user_id,
    QuestionRow.idempotency_key,
    unique=True,
)
