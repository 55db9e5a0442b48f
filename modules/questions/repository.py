"""Statements about questions; each returns rows or None."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    Boolean,
    Select,
    Table,
    bindparam,
    case,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.db import among, db_now
from modules.questions.models import QuestionRow, Status
from modules.users.public import ACCOUNTS

_T = cast(Table, QuestionRow.__table__)
_COLUMNS = tuple(column for column in _T.c if column.key != "idempotency_key")

# All who ask at the same moment share one statement, so it takes its rows as JSON. What
# it does not return was refused: the account is gone or not active.
_ADD = """
WITH input AS ({rows}),
asker AS (
    SELECT id FROM users
    WHERE is_active AND id IN (SELECT user_id FROM input)
    ORDER BY id {lock}
)
INSERT INTO questions (user_id, content, idempotency_key)
SELECT input.user_id, input.content, input.idempotency_key
FROM input JOIN asker ON asker.id = input.user_id
ORDER BY input.n
RETURNING idempotency_key, id
"""
_ADD_ALL = {
    "postgresql": text(
        _ADD.format(
            rows=(
                "SELECT CAST(value->>0 AS bigint) AS user_id, value->>1 AS content,"
                " value->>2 AS idempotency_key, n"
                " FROM jsonb_array_elements(CAST(:rows AS jsonb))"
                " WITH ORDINALITY AS given(value, n)"
            ),
            # Whoever deletes an account waits for us, or we find it gone.
            lock="FOR KEY SHARE",
        )
    ),
    "sqlite": text(
        _ADD.format(
            rows=(
                "SELECT json_extract(value, '$[0]') AS user_id,"
                " json_extract(value, '$[1]') AS content,"
                " json_extract(value, '$[2]') AS idempotency_key, key AS n"
                " FROM json_each(:rows)"
            ),
            lock="",
        )
    ),
}
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
# Built once, and of the table: an entity costs more.
_SETTLE = (
    update(_T)
    .where(_T.c.id == bindparam("question"), _T.c.status == Status.PENDING)
    .values(
        {name: bindparam(f"new_{name}", type_=_T.c[name].type) for name in _OUTCOME}
        | {"answered_at": case((bindparam("is_answered", type_=Boolean), db_now()))}
    )
    .returning(*_COLUMNS)
)


@dataclass(frozen=True, slots=True)
class NewQuestion:
    """A question to store; its key is unlike every other of its asker."""

    user_id: int
    content: str
    idempotency_key: str


async def add_all(
    connection: AsyncConnection, questions: Sequence[NewQuestion]
) -> dict[NewQuestion, int]:
    """Store pending questions; the ids of those whose asker is there and active."""
    rows = json.dumps([astuple(question) for question in questions])
    statement = _ADD_ALL[connection.dialect.name]
    added = {
        row.idempotency_key: row.id
        for row in await connection.execute(statement, {"rows": rows})
    }
    # By key, never by position: one person must not get another's row.
    return {
        question: added[question.idempotency_key]
        for question in questions
        if question.idempotency_key in added
    }


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


async def older(
    session: AsyncSession, user_id: int, *, before: int | None, limit: int
) -> Sequence[Any]:
    """A user's questions from before the one of this id, newest first."""
    # Of a list of one, for the reason above: but here every page but the first begins
    # in the middle, which a range of users would have to be read up to.
    dialect = session.get_bind().dialect.name
    mine = select(*_COLUMNS).where(among(QuestionRow.user_id, [user_id], dialect))
    statement = mine.order_by(QuestionRow.user_id, QuestionRow.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(QuestionRow.id < before)
    return (await session.execute(statement)).all()


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
