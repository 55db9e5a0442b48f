"""Statements about what somebody, or somewhere, has tried of late."""

from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any

from sqlalchemy import ColumnElement, case, delete, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from core.db import UtcDateTime, db_after, db_now
from modules.auth.models import AttemptsRow

FIRST_WAIT_SECONDS = 32
LONGEST_WAIT_SECONDS = 15 * 60
_DOUBLINGS = 5
# Who waits for nothing waits until then. The moment of counting would be wrong: another
# statement, which began before it and stood in line, has not come to that moment yet.
_LONG_AGO = literal(datetime(1970, 1, 1, tzinfo=UTC), UtcDateTime)
_INSERT = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


@dataclass(frozen=True, slots=True)
class Limit:
    """So many failures are free in a window; from then on each makes a longer wait."""

    failures: int
    window_seconds: int


async def reserve(connection: AsyncConnection, key_hash: str, limit: Limit) -> bool:
    """Count an attempt as failed before it is made; False when it must wait.

    One statement, so that of many at once, on any number of servers, no more pass than
    are free. The last free one begins the first wait.
    """
    now = db_now()
    is_over = AttemptsRow.window_ends_at <= now
    counted = case((is_over, 1), else_=AttemptsRow.failures + 1)
    insert: Any = _INSERT[connection.dialect.name](AttemptsRow)
    statement = (
        insert.values(
            key_hash=key_hash,
            failures=1,
            window_ends_at=db_after(limit.window_seconds),
            blocked_until=_blocked_until(literal(1), limit.failures),
        )
        .on_conflict_do_update(
            index_elements=[AttemptsRow.key_hash],
            set_={
                "failures": counted,
                "window_ends_at": case(
                    (is_over, db_after(limit.window_seconds)),
                    else_=AttemptsRow.window_ends_at,
                ),
                "blocked_until": _blocked_until(counted, limit.failures),
            },
            where=AttemptsRow.blocked_until <= now,
        )
        .returning(AttemptsRow.failures)
    )
    return (await connection.execute(statement)).first() is not None


def _blocked_until(failures: ColumnElement[int], free: int) -> ColumnElement[datetime]:
    """No wait while failures are free; then 32 s, 64 s, and so on up to 15 minutes."""
    waits = {free + n: FIRST_WAIT_SECONDS * 2**n for n in range(_DOUBLINGS)}
    return case(
        (failures < free, _LONG_AGO),
        *((failures == count, db_after(seconds)) for count, seconds in waits.items()),
        else_=db_after(LONGEST_WAIT_SECONDS),
    )


async def wait_seconds(connection: AsyncConnection, key_hash: str) -> int:
    """How long until the next attempt may be made, 1 at least."""
    statement = select(AttemptsRow.blocked_until, db_now().label("now"))
    found = await connection.execute(statement.where(AttemptsRow.key_hash == key_hash))
    row = found.one_or_none()
    # Between two statements the wait may have ended.
    return 1 if row is None else max(1, ceil((row[0] - row[1]).total_seconds()))


async def give_back(session: AsyncSession, key_hash: str, limit: Limit) -> None:
    """Take back one reservation, and the wait that it began."""
    counted = AttemptsRow.failures - 1
    statement = update(AttemptsRow).where(
        AttemptsRow.key_hash == key_hash, AttemptsRow.failures > 0
    )
    began_a_wait = AttemptsRow.failures >= limit.failures
    await session.execute(
        statement.values(
            failures=counted,
            blocked_until=case(
                (began_a_wait, _LONG_AGO), else_=AttemptsRow.blocked_until
            ),
        )
    )


async def forget(session: AsyncSession, key_hash: str) -> None:
    """Forget all that was tried under this key."""
    statement = delete(AttemptsRow).where(AttemptsRow.key_hash == key_hash)
    await session.execute(statement)


async def sweep(session: AsyncSession, *, limit: int) -> int:
    """Forget what no longer counts; how much there was, `limit` at most."""
    over = (
        select(AttemptsRow.key_hash)
        .where(
            AttemptsRow.window_ends_at <= db_now(),
            AttemptsRow.blocked_until <= db_now(),
        )
        .limit(limit)
        # What is counted or swept at this moment is left alone, as it is by then.
        .with_for_update(skip_locked=True)
    )
    statement = delete(AttemptsRow).where(AttemptsRow.key_hash.in_(over))
    gone = await session.scalars(statement.returning(AttemptsRow.key_hash))
    return len(gone.all())
