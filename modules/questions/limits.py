"""What people and the service as a whole may still ask, as the database has counted."""

from datetime import UTC, datetime, time, timedelta
from math import ceil

from sqlalchemy.ext.asyncio import AsyncSession

from core.db import Busy, Database
from core.errors import DomainError, RateLimit, TooMany
from modules.questions import repository
from modules.questions.models import UsageRow
from modules.questions.settings import QuestionSettings

_MINUTE, _DAY = 60, 24 * 60 * 60


class LimitReached(TooMany):
    """You have asked as much as you may for now."""

    tells_limits = True


class TooManyInFlight(LimitReached):
    """Too many of your questions wait for their answers at this moment."""

    retry_after_seconds = 1


class MinuteLimitReached(LimitReached):
    """You have asked as many questions as you may within a minute."""

    retry_after_seconds = 1


class DailyLimitReached(LimitReached):
    """You have asked as many questions as you may on a day."""

    retry_after_seconds = _DAY


class DailyTokensSpent(LimitReached):
    """Your questions and answers of today have taken as many tokens as they may."""

    retry_after_seconds = _DAY


class ServiceBudgetSpent(LimitReached):
    """The whole service has used up its budget of today."""

    retry_after_seconds = _DAY


LIMIT_ERRORS = (
    TooManyInFlight,
    MinuteLimitReached,
    DailyLimitReached,
    DailyTokensSpent,
    ServiceBudgetSpent,
)
_ERROR = {
    "in_flight": TooManyInFlight,
    "per_minute": MinuteLimitReached,
    "per_day": DailyLimitReached,
    "tokens_per_day": DailyTokensSpent,
    "service_per_day": ServiceBudgetSpent,
    "service_tokens_per_day": ServiceBudgetSpent,
}


class Limits:
    """The limits that are set; the statement that adds a question keeps them."""

    def __init__(self, db: Database, settings: QuestionSettings) -> None:
        self._db = db
        self._settings = settings

    async def of(self, user_id: int) -> tuple[RateLimit, ...]:
        """What is left of each limit that is set."""
        async with self._db.reading() as session:
            return await self._read(session, user_id)

    async def counted(self, user_id: int) -> UsageRow | None:
        """All that is counted of somebody, whether or not there is a limit to it."""
        async with self._db.reading() as session:
            return await repository.usage(session, user_id)

    async def exceeded(self, session: AsyncSession, user_id: int) -> DomainError:
        """Why a question was refused that nothing else forbids."""
        limits = await self._read(session, user_id)
        spent = [limit for limit in limits if not limit.remaining]
        # What can pass so quickly that it has passed by now.
        passing = [
            limit for limit in limits if limit.name in ("in_flight", "per_minute")
        ]
        found = max(spent, key=_wait, default=passing[0] if passing else None)
        if found is None:
            return Busy()
        error = _ERROR[found.name](retry_after_seconds=max(1, _wait(found)))
        error.limits = limits
        return error

    async def _read(self, session: AsyncSession, user_id: int) -> tuple[RateLimit, ...]:
        if not self._settings.has_limits:
            return ()
        used = await repository.used(session, user_id)
        midnight = ceil((_midnight_after(used.now) - used.now).total_seconds())
        minute = _MINUTE
        if used.minute_ends_at is not None:
            minute = ceil((used.minute_ends_at - used.now).total_seconds())
        kinds = (
            ("in_flight", "concurrent-requests", used.in_flight, None, None),
            ("per_minute", "requests", used.minute_questions, _MINUTE, minute),
            ("per_day", "requests", used.questions, _DAY, midnight),
            ("tokens_per_day", "tokens", used.tokens, _DAY, midnight),
            ("service_per_day", "requests", used.all_questions, _DAY, midnight),
            ("service_tokens_per_day", "tokens", used.all_tokens, _DAY, midnight),
        )
        return tuple(
            RateLimit(name, most, unit, max(0, most - count), window, reset)
            for name, unit, count, window, reset in kinds
            if (most := getattr(self._settings, name))
        )


def _midnight_after(moment: datetime) -> datetime:
    day = moment.astimezone(UTC).date() + timedelta(days=1)
    return datetime.combine(day, time(tzinfo=UTC))


def _wait(limit: RateLimit) -> int:
    return limit.resets_in_seconds or 0
