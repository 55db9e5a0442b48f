"""What a server does on the side, so that every question comes to an end."""

import logging

from core.db import Database
from modules.questions import repository
from modules.questions.domain import OwnerLost
from modules.questions.settings import QuestionSettings

log = logging.getLogger(__name__)

_AT_A_TIME = 500
_DAY = 24 * 60 * 60


class Upkeep:
    """Ends what was left pending, and forgets what is too old."""

    def __init__(self, db: Database, settings: QuestionSettings) -> None:
        self._db = db
        self._settings = settings

    async def interrupt_all(self) -> None:
        """End every pending question: no server but this one could answer it."""
        await self._interrupt(is_sole=True)

    async def interrupt_overdue(self) -> None:
        """End the questions whose server is dead, or they would be over by now."""
        await self._interrupt(is_sole=False)

    async def forget_keys(self) -> None:
        """Forget every Idempotency-Key after a day."""
        forgotten = _AT_A_TIME
        while forgotten == _AT_A_TIME:
            async with self._db.transaction() as session:
                forgotten = await repository.forget_client_keys(
                    session, seconds_ago=_DAY, limit=_AT_A_TIME
                )

    async def remove_old(self) -> None:
        """Remove questions that are older than they are kept, a few at a time."""
        settings = self._settings
        if not settings.keep_days:
            return
        but_newest = settings.history_size if settings.keep_newest else 0
        seconds, place, removed = settings.keep_days * _DAY, None, 0
        while True:
            async with self._db.reading() as session:
                found = await repository.oldest(
                    session, after=place, seconds_ago=seconds, limit=_AT_A_TIME
                )
            if not found:
                break
            async with self._db.transaction() as session:
                removed += await repository.remove_old(
                    session, [row.id for row in found], but_newest=but_newest
                )
            place = (found[-1].asked_at, found[-1].id)
        if removed:
            log.info("questions.removed", extra={"count": removed})

    async def _interrupt(self, *, is_sole: bool) -> None:
        ended = _AT_A_TIME
        while ended == _AT_A_TIME:
            async with self._db.transaction() as session:
                ids = await repository.interrupt_overdue(
                    session, OwnerLost.code, limit=_AT_A_TIME, is_sole=is_sole
                )
            ended = len(ids)
            if ids:
                fields = {"code": OwnerLost.code, "question_ids": sorted(ids)}
                log.warning("questions.interrupted", extra=fields)
