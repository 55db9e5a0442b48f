"""Statements about questions; each returns rows or None."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    Boolean,
    Select,
    Table,
    Text,
    bindparam,
    case,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.db import db_now
from modules.questions.models import QuestionRow, Status
from modules.users.public import ACCOUNTS

_T = cast(Table, QuestionRow.__table__)
_COLUMNS = tuple(column for column in _T.c if column.key != "idempotency_key")

# On everybody's way, so they are built once, and of tables: entities cost more.
_ASKER = (
    select(
        ACCOUNTS.c.id, bindparam("asked", type_=Text), bindparam("key", type_=Text)
    ).where(ACCOUNTS.c.id == bindparam("asker"), ACCOUNTS.c.is_active)
    # Whoever deletes the account waits for us, or we find it gone.
    .with_for_update(read=True, key_share=True)
)
_ADD = (
    insert(_T)
    .from_select(["user_id", "content", "idempotency_key"], _ASKER)
    .returning(*_COLUMNS)
)
_OUTCOME = (
    "status",
    "answer",
    "provider",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "finish_reason",
    "error_code",
    "attempts",
)
_SETTLE = (
    update(_T)
    .where(_T.c.id == bindparam("question"), _T.c.status == Status.PENDING)
    .values(
        {name: bindparam(f"new_{name}", type_=_T.c[name].type) for name in _OUTCOME}
        | {"answered_at": case((bindparam("is_answered", type_=Boolean), db_now()))}
    )
    .returning(*_COLUMNS)
)


async def add(
    connection: AsyncConnection, user_id: int, content: str, idempotency_key: str
) -> Any | None:
    """Store a pending question; None when its account is gone or not active."""
    given = {"asker": user_id, "asked": content, "key": idempotency_key}
    return (await connection.execute(_ADD, given)).one_or_none()


async def settle(
    connection: AsyncConnection, question_id: int, outcome: Mapping[str, Any]
) -> Any | None:
    """Move a pending question to a final state; None when it is pending no more."""
    is_answered = outcome["status"] == Status.ANSWERED
    given = {f"new_{name}": outcome.get(name) for name in _OUTCOME}
    given |= {"question": question_id, "is_answered": is_answered}
    return (await connection.execute(_SETTLE, given)).one_or_none()


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
