"""Statements about questions; each returns rows or None."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    Table,
    delete,
    exists,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from core.db import BigId, UtcDateTime, among, db_after, db_now, only
from modules.questions.models import BudgetRow, QuestionRow, Status, UsageRow
from modules.users.public import ACCOUNTS

_T = cast(Table, QuestionRow.__table__)
_INTERNAL = ("idempotency_key", "client_key", "fingerprint", "deadline_at")
_COLUMNS = tuple(column for column in _T.c if column.key not in _INTERNAL)
_NEWEST_FIRST = (QuestionRow.asked_at.desc(), QuestionRow.id.desc())
# Of an older release, which sets no deadline. Longer than any that can be configured.
_LONG_ASKED_SECONDS = 2 * 60 * 60
# In the statement itself: or no plan could know that a partial index will do.
_LITERAL = {status: literal_column(f"'{status}'", String) for status in Status}
_PENDING = _LITERAL[Status.PENDING]
_HAS_CLIENT_KEY = QuestionRow.client_key.is_not(None)
_place = tuple_(QuestionRow.asked_at, QuestionRow.id)

Place = tuple[datetime, int]
"""When a question was asked, and its id: where it stands in a list."""


@dataclass(frozen=True, slots=True)
class Used:
    """What somebody has used of the limits, and all of them together."""

    now: datetime
    in_flight: int
    minute_questions: int
    minute_ends_at: datetime | None
    """None when no minute has begun that lasts."""
    questions: int
    tokens: int
    all_questions: int
    all_tokens: int


async def used(session: AsyncSession, user_id: int) -> Used:
    """What is counted at this moment; days are of UTC."""
    pending = select(func.count()).where(
        QuestionRow.user_id == user_id, QuestionRow.status == _PENDING
    )
    now, in_flight = (
        await session.execute(select(db_now(), pending.scalar_subquery()))
    ).one()
    today = now.astimezone(UTC).date()
    own = await usage(session, user_id)
    is_today = own is not None and own.day == today
    is_minute = own is not None and own.minute_ends_at > now
    budget = await session.get(BudgetRow, today)
    return Used(
        now=now,
        in_flight=in_flight,
        minute_questions=own.minute_questions if own and is_minute else 0,
        minute_ends_at=own.minute_ends_at if own and is_minute else None,
        questions=own.questions if own and is_today else 0,
        tokens=own.tokens if own and is_today else 0,
        all_questions=budget.questions if budget else 0,
        all_tokens=budget.tokens if budget else 0,
    )


async def usage(session: AsyncSession, user_id: int) -> UsageRow | None:
    """All that is counted of somebody; None of who has asked nothing yet."""
    return await session.get(UsageRow, user_id)


async def find_by_keys(
    session: AsyncSession, user_ids: Sequence[int], keys: Sequence[str]
) -> Sequence[Any]:
    """The questions that were stored with these keys of our own."""
    dialect = session.get_bind().dialect.name
    statement = select(_T.c.idempotency_key, _T.c.id, _T.c.asked_at).where(
        among(QuestionRow.user_id, user_ids, dialect),
        QuestionRow.idempotency_key.in_(keys),
    )
    return (await session.execute(statement)).all()


async def find_by_client_key(
    session: AsyncSession, user_id: int, client_key: str
) -> Any | None:
    """The question that a client sent with this key, with its `fingerprint`."""
    statement = select(*_COLUMNS, _T.c.fingerprint).where(
        QuestionRow.user_id == user_id, QuestionRow.client_key == client_key
    )
    return (await session.execute(statement)).one_or_none()


async def may_ask(session: AsyncSession, user_id: int) -> bool:
    """Whether the account is there and active."""
    account = select(ACCOUNTS.c.is_active).where(ACCOUNTS.c.id == user_id)
    return bool(await session.scalar(account))


def newest_of(user_id: int, size: int) -> Select[Any]:
    """The statement of "the last three"; the index has its very order."""
    mine = select(*_COLUMNS).where(_is_only(user_id))
    # Not as a parameter: PostgreSQL takes that for a tenth of all somebody has, and
    # plans every execution anew, which takes longer than finding the three.
    few = literal_column(str(size), Integer)
    return mine.order_by(QuestionRow.user_id, *_NEWEST_FIRST).limit(few)


async def newest(session: AsyncSession, user_id: int, size: int) -> Sequence[Any]:
    return (await session.execute(newest_of(user_id, size))).all()


async def older(
    session: AsyncSession, user_id: int, *, before: Place | None, limit: int
) -> Sequence[Any]:
    """A user's questions from before that place, newest first."""
    statement = newest_of(user_id, limit)
    if before is not None:
        statement = statement.where(_place < _given(before))
    return (await session.execute(statement)).all()


async def find(
    session: AsyncSession, question_id: int, owner: int | None
) -> Any | None:
    """`owner` None is for administrators: anybody's question."""
    statement = select(*_COLUMNS).where(QuestionRow.id == question_id)
    if owner is not None:
        statement = statement.where(QuestionRow.user_id == owner)
    return (await session.execute(statement)).one_or_none()


def page_of(
    *,
    after: Place | None,
    limit: int,
    user_id: int | None,
    status: Status | None,
    asked_from: datetime | None,
    asked_before: datetime | None,
) -> Select[Any]:
    """The statement of a page of anybody's questions; an index has its very order."""
    # Asked for at the end, of those alone that are shown.
    asker = select(ACCOUNTS.c.username).where(ACCOUNTS.c.id == QuestionRow.user_id)
    statement = select(*_COLUMNS, asker.scalar_subquery().label("username"))
    if status is None or status is Status.ANSWERED:
        if status is not None:
            # Nearly all are: those that are not may be passed over.
            statement = statement.where(QuestionRow.status == _LITERAL[status])
        if user_id is not None:
            statement = statement.where(_is_only(user_id))
            statement = statement.order_by(QuestionRow.user_id)
    else:
        statement = statement.where(only(QuestionRow.status, _LITERAL[status]))
        statement = statement.order_by(QuestionRow.status)
        if user_id is not None:
            statement = statement.where(QuestionRow.user_id == user_id)
    if asked_from is not None:
        statement = statement.where(QuestionRow.asked_at >= asked_from)
    # Never both: PostgreSQL may begin at the one and read all up to the other.
    if after is not None and (asked_before is None or after[0] < asked_before):
        statement = statement.where(_place < _given(after))
    elif asked_before is not None:
        statement = statement.where(QuestionRow.asked_at < asked_before)
    return statement.order_by(*_NEWEST_FIRST).limit(limit)


async def page(session: AsyncSession, **filters: Any) -> Sequence[Any]:
    """Anybody's questions with their asker's user name, newest first."""
    return (await session.execute(page_of(**filters))).all()


async def remove(session: AsyncSession, question_id: int, user_id: int) -> bool:
    """Erase somebody's own question; False when there is none."""
    statement = delete(QuestionRow).where(
        QuestionRow.id == question_id, QuestionRow.user_id == user_id
    )
    return (await session.scalar(statement.returning(QuestionRow.id))) is not None


async def interrupt_overdue(
    session: AsyncSession, code: str, *, limit: int, is_sole: bool
) -> Sequence[int]:
    """End what nobody answers any more; their ids, `limit` at most.

    `is_sole`: no server but this one, which asks nothing yet, could answer them.
    """
    pending = select(QuestionRow.id).where(only(QuestionRow.status, _PENDING))
    if not is_sole:
        long_asked = QuestionRow.asked_at < db_after(-_LONG_ASKED_SECONDS)
        overdue = func.coalesce(QuestionRow.deadline_at < db_now(), long_asked)
        pending = pending.where(overdue)
    found = _taken(pending.order_by(QuestionRow.status).limit(limit))
    statement = (
        update(QuestionRow)
        .where(QuestionRow.id.in_(found))
        .values(status=Status.INTERRUPTED, error_code=code)
        .returning(QuestionRow.id)
    )
    return (await session.scalars(statement)).all()


async def forget_client_keys(
    session: AsyncSession, *, seconds_ago: int, limit: int
) -> int:
    """Forget keys that were sent so long ago; how many, `limit` at most."""
    old = (
        select(QuestionRow.id)
        .where(_HAS_CLIENT_KEY, QuestionRow.asked_at < db_after(-seconds_ago))
        .order_by(QuestionRow.asked_at)
        .limit(limit)
    )
    statement = (
        update(QuestionRow)
        .where(QuestionRow.id.in_(_taken(old)))
        .values(client_key=None, fingerprint=None)
        .returning(QuestionRow.id)
    )
    return len((await session.scalars(statement)).all())


async def oldest(
    session: AsyncSession, *, after: Place | None, seconds_ago: int, limit: int
) -> Sequence[Any]:
    """Places of questions that were asked so long ago, from the oldest on."""
    statement = (
        select(QuestionRow.asked_at, QuestionRow.id)
        .where(QuestionRow.asked_at < db_after(-seconds_ago))
        .order_by(QuestionRow.asked_at, QuestionRow.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(_place > _given(after))
    return (await session.execute(statement)).all()


async def remove_old(
    session: AsyncSession, ids: Sequence[int], *, but_newest: int
) -> int:
    """Erase these unless they are pending or among the `but_newest` of their askers."""
    dialect = session.get_bind().dialect.name
    doomed = select(QuestionRow.id).where(
        among(QuestionRow.id, ids, dialect), QuestionRow.status != Status.PENDING
    )
    if but_newest:
        newer = aliased(QuestionRow)
        enough_newer = (
            select(newer.id)
            .where(
                only(newer.user_id, QuestionRow.user_id),
                tuple_(newer.asked_at, newer.id) > _place,
            )
            # The order of the index: no other way to find a few must look quicker.
            .order_by(newer.user_id, newer.asked_at.desc(), newer.id.desc())
            .offset(but_newest - 1)
            .limit(1)
        )
        doomed = doomed.where(exists(enough_newer.correlate(QuestionRow)))
    statement = delete(QuestionRow).where(QuestionRow.id.in_(_taken(doomed)))
    return len((await session.scalars(statement.returning(QuestionRow.id))).all())


def _is_only(user_id: int) -> ColumnElement[bool]:
    return only(QuestionRow.user_id, literal(user_id, BigId))


def _taken(found: Select[tuple[int]]) -> Select[tuple[int]]:
    """Locks what is found; what is settled or deleted at this moment is left alone."""
    # Found once. A subquery may be run again for every row, each time past its limit.
    taken = found.with_for_update(skip_locked=True).cte("taken")
    return select(taken.c.id)


def _given(place: Place) -> ColumnElement[Any]:
    asked_at, question_id = place
    return tuple_(literal(asked_at, UtcDateTime), literal(question_id, BigId))
