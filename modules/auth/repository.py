"""Statements about credentials and sessions; each returns rows or None."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    Table,
    Uuid,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from core.db import BigId, Database, Statement, db_after, db_now
from modules.auth.models import CredentialRow, RefreshTokenRow, SessionRow
from modules.users.public import ACCOUNTS


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to open."""

    id: UUID
    user_id: int
    lasts_seconds: int
    client: str | None
    network_hash: str


async def add_credential(
    session: AsyncSession, user_id: int, password_hash: str
) -> None:
    await session.execute(
        insert(CredentialRow).values(user_id=user_id, password_hash=password_hash)
    )


async def sessions_before(
    session: AsyncSession, user_id: int, last: Any | None, *, limit: int
) -> Sequence[Any]:
    """Every session of a user that comes after `last`, newest first; no hashes."""
    place = (SessionRow.created_at, SessionRow.id)
    statement = (
        select(
            SessionRow.id,
            SessionRow.created_at,
            SessionRow.last_used_at,
            SessionRow.expires_at,
            SessionRow.revoked_at,
            SessionRow.client,
        )
        .where(SessionRow.user_id == user_id)
        .order_by(*[column.desc() for column in place])
        .limit(limit)
    )
    if last is not None:
        statement = statement.where(tuple_(*place) < (last.created_at, last.id))
    return (await session.execute(statement)).all()


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


async def upgrade_password_hash(
    session: AsyncSession, user_id: int, *, old: str, new: str
) -> bool:
    """Whether the old one was still in place. The password is the same as before."""
    # First the account, as in its deletion and in `open_session`.
    account = select(ACCOUNTS.c.id).where(ACCOUNTS.c.id == literal(user_id, BigId))
    statement = (
        update(CredentialRow)
        .where(
            CredentialRow.user_id.in_(account.with_for_update(read=True)),
            CredentialRow.password_hash == old,
        )
        .values(password_hash=new)
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
    session: AsyncSession, new: NewSession, *, verified: str
) -> bool:
    """Open a session, but only while the verified hash and the account still stand.

    A password changed between the check and this statement opens nothing.
    """
    source = (
        select(
            literal(new.id),
            ACCOUNTS.c.id,
            db_after(new.lasts_seconds),
            literal(new.client, String),
            literal(new.network_hash),
        )
        .join_from(ACCOUNTS, CredentialRow, CredentialRow.user_id == ACCOUNTS.c.id)
        .where(
            ACCOUNTS.c.id == literal(new.user_id, BigId),
            ACCOUNTS.c.is_active,
            CredentialRow.password_hash == verified,
        )
        # A change of this password waits for us, and then ends this session too. The
        # account comes first, as in its deletion: else the two could block each other.
        .with_for_update(read=True, of=[ACCOUNTS, CredentialRow])
    )
    columns = ["id", "user_id", "expires_at", "client", "network_hash"]
    statement = insert(SessionRow).from_select(columns, source)
    opened = await session.scalar(statement.returning(SessionRow.id))
    return opened is not None


async def add_refresh_token(
    session: AsyncSession, token_hash: str, session_id: UUID
) -> None:
    values = {"token_hash": token_hash, "session_id": session_id}
    await session.execute(insert(RefreshTokenRow).values(values))


async def is_refresh_token(session: AsyncSession, token_hash: str) -> bool:
    """Whether it was ever issued, and its session is not forgotten."""
    statement = select(exists().where(RefreshTokenRow.token_hash == token_hash))
    return bool(await session.scalar(statement))


async def lock_session_of(session: AsyncSession, token_hash: str) -> Any | None:
    """The session a refresh token belongs to, and whether it still lasts.

    Whoever refreshes or ends it meanwhile waits for us, and we for them.
    """
    lasts = and_(
        SessionRow.revoked_at.is_(None),
        SessionRow.expires_at > db_now(),
        ACCOUNTS.c.is_active,
    )
    statement = (
        select(
            SessionRow.id,
            SessionRow.user_id,
            SessionRow.created_at,
            lasts.label("lasts"),
            db_now().label("now"),
        )
        .join(RefreshTokenRow, RefreshTokenRow.session_id == SessionRow.id)
        .join(ACCOUNTS, ACCOUNTS.c.id == SessionRow.user_id)
        .where(RefreshTokenRow.token_hash == token_hash)
        .with_for_update(key_share=True, of=SessionRow)
    )
    return (await session.execute(statement)).one_or_none()


async def use_refresh_token(
    session: AsyncSession, token_hash: str, *, grace_seconds: int
) -> bool:
    """Use a token up; False when it was used before.

    Within the grace the token used last, and no older one, counts as unused.
    """
    later = aliased(RefreshTokenRow)
    was_used_later = exists().where(
        later.session_id == RefreshTokenRow.session_id,
        later.used_at > RefreshTokenRow.used_at,
    )
    is_in_grace = and_(
        RefreshTokenRow.used_at > db_after(-grace_seconds), not_(was_used_later)
    )
    statement = (
        update(RefreshTokenRow)
        .where(
            RefreshTokenRow.token_hash == token_hash,
            or_(RefreshTokenRow.used_at.is_(None), is_in_grace),
        )
        .values(used_at=func.coalesce(RefreshTokenRow.used_at, db_now()))
        .returning(RefreshTokenRow.token_hash)
    )
    return (await session.scalar(statement)) is not None


async def retire_siblings(session: AsyncSession, token_hash: str) -> None:
    """Use up what else was given for the predecessor of a token just used.

    In the grace that may be several tokens, and only one of them goes on. They count as
    used when they were issued, so that no grace is left to them.
    """
    used = aliased(RefreshTokenRow)
    is_older = exists().where(
        used.token_hash == token_hash,
        used.session_id == RefreshTokenRow.session_id,
        used.used_at > RefreshTokenRow.issued_at,
    )
    statement = update(RefreshTokenRow).where(
        RefreshTokenRow.used_at.is_(None), is_older
    )
    await session.execute(statement.values(used_at=RefreshTokenRow.issued_at))


async def prolong_session(
    session: AsyncSession, session_id: UUID, *, expires_at: datetime
) -> None:
    statement = update(SessionRow).where(SessionRow.id == session_id)
    await session.execute(
        statement.values(last_used_at=db_now(), expires_at=expires_at)
    )


async def sessions_of(
    session: AsyncSession, user_id: int, *, limit: int
) -> Sequence[Any]:
    """The sessions that still last, those used last first."""
    statement = (
        select(
            SessionRow.id,
            SessionRow.created_at,
            SessionRow.last_used_at,
            SessionRow.expires_at,
            SessionRow.client,
        )
        .where(
            SessionRow.user_id == user_id,
            SessionRow.revoked_at.is_(None),
            SessionRow.expires_at > db_now(),
        )
        .order_by(SessionRow.last_used_at.desc(), SessionRow.id)
        .limit(limit)
    )
    return (await session.execute(statement)).all()


async def knows_network(session: AsyncSession, user_id: int, network_hash: str) -> bool:
    """Whether a session of this user's was opened from there."""
    statement = select(
        exists().where(
            SessionRow.user_id == user_id, SessionRow.network_hash == network_hash
        )
    )
    return bool(await session.scalar(statement))


async def revoke_session(session: AsyncSession, session_id: UUID, user_id: int) -> bool:
    """Whether there was such a session to end."""
    statement = (
        update(SessionRow)
        .where(
            SessionRow.id == session_id,
            SessionRow.user_id == user_id,
            SessionRow.revoked_at.is_(None),
            SessionRow.expires_at > db_now(),
        )
        .values(revoked_at=db_now())
        .returning(SessionRow.id)
    )
    return (await session.scalar(statement)) is not None


async def lock_account(session: AsyncSession, user_id: int) -> None:
    """Let nobody else end several sessions of this account, nor open one.

    To be done before anything else: an account's deletion begins with it, too.
    """
    # NO KEY UPDATE: the account's questions may refer to the row meanwhile.
    account = select(ACCOUNTS.c.id).where(ACCOUNTS.c.id == user_id)
    await session.execute(account.with_for_update(key_share=True))


async def revoke_sessions(
    session: AsyncSession, user_id: int, *, keep: UUID | None = None
) -> None:
    """End every session of somebody's, but for the one to `keep`.

    Lock the account first: two that do this lock the sessions in orders of their own.
    """
    statement = update(SessionRow).where(
        SessionRow.user_id == user_id, SessionRow.revoked_at.is_(None)
    )
    if keep is not None:
        statement = statement.where(SessionRow.id != keep)
    await session.execute(statement.values(revoked_at=db_now()))


async def sweep_sessions(
    session: AsyncSession, *, ended_seconds_ago: int, limit: int
) -> int:
    """Forget sessions that ended so long ago; how many there were, `limit` at most."""
    # A revoked session has an end, too: its own, which comes later.
    ended = (
        select(SessionRow.id)
        .where(SessionRow.expires_at < db_after(-ended_seconds_ago))
        .limit(limit)
        # Nobody waits for a sweep that waits for them.
        .with_for_update(skip_locked=True)
    )
    statement = delete(SessionRow).where(SessionRow.id.in_(ended))
    gone = await session.scalars(statement.returning(SessionRow.id))
    return len(gone.all())


_SESSIONS = cast(Table, SessionRow.__table__)


def _callers(those: ColumnElement[bool]) -> Select[Any]:
    return (
        select(_SESSIONS.c.id.label("session_id"), *ACCOUNTS.c)
        .join_from(_SESSIONS, ACCOUNTS, ACCOUNTS.c.id == _SESSIONS.c.user_id)
        .where(
            those,
            _SESSIONS.c.revoked_at.is_(None),
            _SESSIONS.c.expires_at > db_now(),
            ACCOUNTS.c.is_active,
        )
    )


# Asked for on every request, so each is built once, for any number of sessions.
_CALLERS = {
    "postgresql": Statement(
        _callers(_SESSIONS.c.id == func.any(bindparam("sessions", type_=ARRAY(Uuid()))))
    ),
    "sqlite": Statement(
        _callers(
            _SESSIONS.c.id.in_(
                select(
                    func.json_each(bindparam("sessions")).table_valued("value").c.value
                )
            )
        )
    ),
}


async def find_callers(db: Database, sessions: Sequence[UUID]) -> Sequence[Any]:
    """The sessions that still last, each with its account."""
    # SQLite keeps a UUID as its digits.
    is_sqlite = db.dialect == "sqlite"
    ids = json.dumps([s.hex for s in sessions]) if is_sqlite else sessions
    return await db.fetch(_CALLERS[db.dialect], {"sessions": ids})
