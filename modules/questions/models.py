"""The tables of questions, and of what has been used of the limits."""

from datetime import date, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Date,
    ForeignKey,
    Identity,
    Index,
    String,
    Text,
    text,
)
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
        CheckConstraint(
            "length(client_key) BETWEEN 1 AND 255", name="client_key_length"
        ),
        CheckConstraint(
            "(client_key IS NULL) = (fingerprint IS NULL)",
            name="client_key_fingerprint",
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
    # Made by us for every question: after a connection died, it tells whether the row
    # was stored all the same.
    idempotency_key: Mapped[str] = mapped_column(String(255))
    # The Idempotency-Key that a client sent, as long as it counts, and what with.
    client_key: Mapped[str | None] = mapped_column(String(255))
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    asked_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())
    answered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Pending after that: whoever asks is dead. An older release does not set it.
    deadline_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Who was asked, in order; not set before they have been, or by an older release.
    attempts: Mapped[list[dict[str, Any]] | None] = mapped_column(
        JSON(none_as_null=True)
    )


class UsageRow(Base):
    """What somebody has used of their limits; deleting questions gives nothing back."""

    __tablename__ = "questions_usage"

    user_id: Mapped[int] = mapped_column(
        BigId, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    # In UTC: the one that both counts below are of.
    day: Mapped[date] = mapped_column(Date)
    questions: Mapped[int]
    tokens: Mapped[int] = mapped_column(BigId)
    # A minute begins with its first question.
    minute_ends_at: Mapped[datetime] = mapped_column(UtcDateTime)
    minute_questions: Mapped[int]


class BudgetRow(Base):
    """What all have used of the service's budget on one day; none without a budget."""

    __tablename__ = "questions_budget"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    questions: Mapped[int] = mapped_column(BigId)
    tokens: Mapped[int] = mapped_column(BigId)


def _index(name: str, *columns: Any, only: str = "", unique: bool = False) -> None:
    """`only` the rows of which that is true."""
    where = text(only) if only else None
    Index(
        f"{'uq' if unique else 'ix'}_questions_{name}",
        *columns,
        unique=unique,
        postgresql_where=where,
        sqlite_where=where,
    )


_NEWEST_FIRST = (QuestionRow.asked_at.desc(), QuestionRow.id.desc())
# SQLite knows one term of an OR again when a query has it, but not one of a list.
_UNANSWERED = "status = 'failed' OR status = 'interrupted' OR status = 'pending'"

# "The last three" of anybody costs the same however long the history is; so does a page
# of an administrator's list, whatever it is narrowed to. Nearly all questions are
# answered: those need no index of their own, and cost the others none. Whoever orders
# by the status first cannot be led through anything but the unanswered, whatever the
# statistics may be.
_index("user_id_asked_at", QuestionRow.user_id, *_NEWEST_FIRST)
_index("asked_at", *_NEWEST_FIRST)
_index("unanswered", QuestionRow.status, *_NEWEST_FIRST, only=_UNANSWERED)
_index(
    "unanswered_user_id",
    QuestionRow.status,
    QuestionRow.user_id,
    *_NEWEST_FIRST,
    only=_UNANSWERED,
)
_index(
    "user_id_idempotency_key",
    QuestionRow.user_id,
    QuestionRow.idempotency_key,
    unique=True,
)
_index(
    "user_id_client_key",
    QuestionRow.user_id,
    QuestionRow.client_key,
    only="client_key IS NOT NULL",
    unique=True,
)
_index("client_key_asked_at", QuestionRow.asked_at, only="client_key IS NOT NULL")
