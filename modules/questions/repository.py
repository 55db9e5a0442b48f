"""Statements about questions; each returns rows or None."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from core.db import BigId, db_now
from modules.questions.models import QuestionRow, Status
from modules.users.public import ACCOUNTS

_COLUMNS = (
    QuestionRow.id,
    QuestionRow.user_id,
    QuestionRow.content,
    QuestionRow.status,
    QuestionRow.answer,
    QuestionRow.provider,
    QuestionRow.model,
    QuestionRow.prompt_tokens,
    QuestionRow.completion_tokens,
    QuestionRow.finish_reason,
    QuestionRow.error_code,
    QuestionRow.attempts,
    QuestionRow.asked_at,
    QuestionRow.answered_at,
)


async def add(
    session: AsyncSession, user_id: int, content: str, idempotency_key: str
) -> Any | None:
    """Store a pending question; None when its account is gone or not active."""
    asker = (
        select(ACCOUNTS.c.id, literal(content), literal(idempotency_key)).where(
            ACCOUNTS.c.id == literal(user_id, BigId), ACCOUNTS.c.is_active
        )
        # Whoever deletes the account waits for us, or we find it gone.
        .with_for_update(read=True, key_share=True)
    )
    columns = ["user_id", "content", "idempotency_key"]
    statement = insert(QuestionRow).from_select(columns, asker).returning(*_COLUMNS)
    return (await session.execute(statement)).one_or_none()


async def settle(
    session: AsyncSession, question_id: int, values: dict[str, Any]
) -> Any | None:
    """Move a pending question to a final state; None when it is pending no more."""
    if values["status"] == Status.ANSWERED:
        values = values | {"answered_at": db_now()}
    statement = (
        update(QuestionRow)
        .where(QuestionRow.id == question_id, QuestionRow.status == Status.PENDING)
        .values(values)
        .returning(*_COLUMNS)
    )
    return (await session.execute(statement)).one_or_none()


def newest_of(user_id: int, size: int) -> Select[Any]:
    """The statement of "the last three"; the index has its very order."""
    # Not `==`: PostgreSQL would drop user_id from the order, and might then walk the
    # primary key through everybody's newer questions to find the few of one person.
    mine = select(*_COLUMNS).where(QuestionRow.user_id.between(user_id, user_id))
    return mine.order_by(QuestionRow.user_id, QuestionRow.id.desc()).limit(size)


async def newest(session: AsyncSession, user_id: int, size: int) -> Sequence[Any]:
    return (await session.execute(newest_of(user_id, size))).all()


async def find(
    session: AsyncSession, question_id: int, owner: int | None
) -> Any | None:
    """`owner` None is for administrators: anybody's question."""
    statement = select(*_COLUMNS).where(QuestionRow.id == question_id)
    if owner is not None:
        statement = statement.where(QuestionRow.user_id == owner)
    return (await session.execute(statement)).one_or_none()


async def page(
    session: AsyncSession,
    *,
    after: int | None,
    limit: int,
    user_id: int | None,
    status: Status | None,
    asked_from: datetime | None,
    asked_before: datetime | None,
) -> Sequence[Any]:
    """Anybody's questions with their asker's user name, newest first."""
    statement = (
        select(*_COLUMNS, ACCOUNTS.c.username)
        .join(ACCOUNTS, ACCOUNTS.c.id == QuestionRow.user_id)
        .order_by(QuestionRow.id.desc())
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(QuestionRow.id < after)
    if user_id is not None:
        statement = statement.where(QuestionRow.user_id == user_id)
    if status is not None:
        statement = statement.where(QuestionRow.status == status)
    if asked_from is not None:
        statement = statement.where(QuestionRow.asked_at >= asked_from)
    if asked_before is not None:
        statement = statement.where(QuestionRow.asked_at < asked_before)
    return (await session.execute(statement)).all()
