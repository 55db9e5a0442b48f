"""Questions that have been asked, for those who may see them."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from core.db import Database
from core.pages import cut_page, decode_cursor, encode_cursor, every, invalid_cursor
from modules.questions import repository
from modules.questions.asking import Asking
from modules.questions.domain import Question, QuestionNotFound, question_of
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings

_CURSOR = "questions"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Few: an answer may have as many kilobytes.
_READ_AT_A_TIME = 100


@dataclass(frozen=True, slots=True)
class Filters:
    """What an administrator's list is narrowed to; None does not narrow."""

    user_id: int | None = None
    status: Status | None = None
    asked_from: datetime | None = None
    asked_before: datetime | None = None


class Questions:
    """Everything that people do with questions, but for asking them."""

    def __init__(
        self, db: Database, asking: Asking, settings: QuestionSettings
    ) -> None:
        self._db = db
        self._asking = asking
        self.settings = settings

    async def newest(self, user_id: int) -> list[Question]:
        """The user's own last questions of any status, newest first."""
        async with self._db.reading() as session:
            size = self.settings.history_size
            rows = await repository.newest(session, user_id, size)
        return [question_of(row) for row in rows]

    def all_of(self, user_id: int) -> AsyncGenerator[Question, None]:
        """The user's own questions of any status, newest first, read as they are taken.

        What is asked meanwhile is not among them.
        """

        async def read(last: Question | None) -> list[Question]:
            before = None if last is None else (last.asked_at, last.id)
            async with self._db.reading() as session:
                rows = await repository.older(
                    session, user_id, before=before, limit=_READ_AT_A_TIME
                )
            return [question_of(row) for row in rows]

        return every(read)

    async def find(self, question_id: int, *, owner: int | None) -> Question:
        """Raises QuestionNotFound; `owner` None may see anybody's."""
        async with self._db.reading() as session:
            row = await repository.find(session, question_id, owner)
        if row is None:
            raise QuestionNotFound
        return question_of(row)

    async def delete(self, question_id: int, *, owner: int) -> None:
        """Erase a question; if it is still being answered, that ends.

        What was used of limits is not given back. Raises QuestionNotFound.
        """
        async with self._db.transaction() as session:
            is_gone = await repository.remove(session, question_id, owner)
        if not is_gone:
            raise QuestionNotFound
        self._asking.withdraw(question_id)

    async def page(
        self, filters: Filters, *, cursor: str | None, limit: int
    ) -> tuple[list[Question], str | None]:
        """Anybody's questions, newest first, and the next page's cursor if any."""
        async with self._db.reading() as session:
            rows = await repository.page(
                session,
                after=_place(cursor),
                limit=limit + 1,
                user_id=filters.user_id,
                status=filters.status,
                asked_from=filters.asked_from,
                asked_before=filters.asked_before,
            )
        shown, has_more = cut_page(rows, limit)
        questions = [question_of(row) for row in shown]
        return questions, _cursor(questions[-1]) if has_more else None


def _cursor(last: Question) -> str:
    microseconds = (last.asked_at - _EPOCH) // timedelta(microseconds=1)
    return encode_cursor(_CURSOR, microseconds, last.id)


def _place(cursor: str | None) -> repository.Place | None:
    place = decode_cursor(_CURSOR, cursor, numbers=2)
    if place is None:
        return None
    microseconds, question_id = place
    try:
        return _EPOCH + timedelta(microseconds=microseconds), question_id
    except OverflowError:
        raise invalid_cursor() from None
