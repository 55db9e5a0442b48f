"""Statements about credentials and sessions; each returns rows or None."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Uuid,
    bindparam,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.db import BigId, UtcDateTime, db_now
from modules.auth.models import CredentialRow, SessionRow
from modules.users.public import ACCOUNTS


async def add_credential(
    session: AsyncSession, user_id: int, password_hash: str
) -> None:
    await session.execute(
        insert(CredentialRow).values(user_id=user_id, password_hash=password_hash)
    )


async def password_hash(session: AsyncSession, user_id: int) -> str | None:
    statement = select(CredentialRow.password_hash)
    found: str | None = await session.scalar(
        statement.where(CredentialRow.user_id == user_id)
    )
    return found


async def replace_password_hash(
    session: AsyncSession, user_id: int, *, old: str, new: str
) -> bool:
    """Whether the old one was still in place."""
    statement = (
        update(CredentialRow)
        .where(CredentialRow.user_id == user_id, CredentialRow.password_hash == old)
        .values(password_hash=new, changed_at=db_now())
        .returning(CredentialRow.user_id)
    )
    return (await session.scalar(statement)) is not None


async def set_password_hash(session: AsyncSession, user_id: int, new: str) -> bool:
    """Whether there is such a user."""
    # The account comes first, as in its deletion: else the two could block each other.
    account = select(ACCOUNTS.c.id).where(ACCOUNTS.c.id == user_id)
    await session.execute(account.with_for_update(read=True))
    statement = (
        update(CredentialRow)
        .where(CredentialRow.user_id == user_id)
        .values(password_hash=new, changed_at=db_now())
        .returning(CredentialRow.user_id)
    )
    return (await session.scalar(statement)) is not None


async def open_session(
    session: AsyncSession,
    session_id: UUID,
    user_id: int,
    *,
    verified: str,
    expires_at: datetime,
) -> bool:
    """Open a session, but only while the verified hash and the account still stand.

    A password changed between the check and this statement opens nothing.
    """
    source = (
        select(
            literal(session_id),
            ACCOUNTS.c.id,
            literal(expires_at, UtcDateTime),
        )
        .join_from(ACCOUNTS, CredentialRow, CredentialRow.user_id == ACCOUNTS.c.id)
        .where(
            ACCOUNTS.c.id == literal(user_id, BigId),
            ACCOUNTS.c.is_active,
            CredentialRow.password_hash == verified,
        )
        # A change of this password waits for us, and then ends this session too. The
        # account comes first, as in its deletion: else the two could block each other.
        .with_for_update(read=True, of=[ACCOUNTS, CredentialRow])
    )
    columns = ["id", "user_id", "expires_at"]
    statement = insert(SessionRow).from_select(columns, source)
    opened = await session.scalar(statement.returning(SessionRow.id))
    return opened is not None


_SESSIONS = cast(Table, SessionRow.__table__)


def _callers(those: ColumnElement[bool]) -> Select[Any]:
    return (
        select(_SESSIONS.c.id.label("session_id"), *ACCOUNTS.c)
        .join_from(_SESSIONS, ACCOUNTS, ACCOUNTS.c.id == _SESSIONS.c.user_id)
        .where(
            those,
            _SESSIONS.c.revoked_at.is_(None),
            _SESSIONS.c.expires_at > bindparam("now"),
            ACCOUNTS.c.is_active,
        )
    )


# Asked for on every request, so each is built once, for any number of sessions.
_CALLERS = {
    "postgresql": _callers(
        _SESSIONS.c.id == func.any(bindparam("sessions", type_=ARRAY(Uuid())))
    ),
    "sqlite": _callers(
        _SESSIONS.c.id.in_(
            select(func.json_each(bindparam("sessions")).table_valued("value").c.value)
        )
    ),
}


async def find_callers(
    connection: AsyncConnection, sessions: Sequence[UUID], now: datetime
) -> Sequence[Any]:
    """The sessions that still last, each with its account."""
    dialect = connection.dialect.name
    # SQLite keeps a UUID as its digits.
    ids = json.dumps([s.hex for s in sessions]) if dialect == "sqlite" else sessions
    given = {"sessions": ids, "now": now}
    return (await connection.execute(_CALLERS[dialect], given)).all()


async def revoke_sessions(
    session: AsyncSession, user_id: int, *, keep: UUID | None = None
) -> None:
    """End the user's sessions, all or all but one."""
    theirs = update(SessionRow).where(
        SessionRow.user_id == user_id, SessionRow.revoked_at.is_(None)
    )
    if keep is not None:
        theirs = theirs.where(SessionRow.id != keep)
    await session.execute(theirs.values(revoked_at=db_now()))
