"""The two writes of a question's way, each shared by all who are there just then."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import to_json
from sqlalchemy import Executable

from core.batching import Batcher
from core.db import Database, Statement
from modules.questions import repository
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings
from modules.questions.sql import NEW, OUTCOME, statements
from providers.public import Attempt


# These are made for every question; to be frozen as well would take thrice as long.
@dataclass(slots=True, eq=False)
class NewQuestion:
    """A question to store. Its own key is unlike every other."""

    user_id: int
    content: str
    idempotency_key: str
    client_key: str | None = None
    fingerprint: str | None = None


class Added(NamedTuple):
    """What the database made of a new question."""

    id: int
    asked_at: datetime


@dataclass(slots=True, eq=False)
class Outcome:
    """What became of a question; there is one for each."""

    question_id: int
    user_id: int
    status: Status
    attempts: tuple[Attempt, ...] = ()
    answer: str | None = None
    provider: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error_code: str | None = None


class Settled(NamedTuple):
    """What the database made of an outcome."""

    answered_at: datetime | None


class Writing:
    """Adds questions and settles them, together."""

    def __init__(
        self,
        db: Database,
        limits: QuestionSettings,
        deadline_seconds: float,
        unclaimed: Callable[[NewQuestion, Added], object] | None = None,
    ) -> None:
        """A question is taken for lost when it is pending after `deadline_seconds`.

        `unclaimed` is told of one that was added when nobody waited for it any more.
        """
        self._db = db
        self._sql = statements(db.dialect, limits, deadline_seconds)
        self.adding = Batcher(
            self._add, again=self._add_again, unclaimed=unclaimed, most=200
        )
        # An answer may have hundreds of kilobytes.
        self.settling = Batcher(
            self._settle, again=self._settle, most=100, weigh=_length
        )

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        await self.adding.drain()
        await self.settling.drain()

    async def _add(
        self, questions: Sequence[NewQuestion]
    ) -> Mapping[NewQuestion, Added]:
        """Store pending questions; what is missing was refused."""
        user_ids = ", ".join({str(question.user_id) for question in questions})
        lock = self._sql.lock.format(user_ids=user_ids)
        rows = _rows(questions, NEW)
        found = await self._write(self._sql.add, rows, self._sql.count, lock)
        return _by_key(questions, found)

    async def _add_again(
        self, questions: Sequence[NewQuestion]
    ) -> Mapping[NewQuestion, Added]:
        """The same again, when nobody knows whether the first time was committed.

        What is there already is not added, and ours all the same. It is looked for
        last: the first time may be under way still, and the second has waited for it.
        """
        added = dict(await self._add(questions))
        missing = [question for question in questions if question not in added]
        if not missing:
            return added
        keys = [question.idempotency_key for question in missing]
        users = [question.user_id for question in missing]
        async with self._db.reading() as session:
            found = await repository.find_by_keys(session, users, keys)
        return added | _by_key(missing, found)

    async def _settle(self, outcomes: Sequence[Outcome]) -> Mapping[Outcome, Settled]:
        """Move pending questions to their ends; what is missing is pending no more."""
        rows = _rows(outcomes, OUTCOME)
        found = await self._write(self._sql.settle, rows, self._sql.spend)
        settled = {id_: Settled(answered_at) for id_, answered_at, *_ in found}
        return {
            outcome: settled[outcome.question_id]
            for outcome in outcomes
            if outcome.question_id in settled
        }

    async def _write(
        self,
        statement: Statement,
        rows: str,
        following: Sequence[Executable],
        lock: str = "",
    ) -> Sequence[Any]:
        if not following:
            return await self._db.fetch(statement, {"rows": rows}, lock=lock)
        async with self._db.work() as connection:
            found = (await connection.execute(statement.element, {"rows": rows})).all()
            ids = json.dumps([row.id for row in found])
            for counting in following:
                await connection.execute(counting, {"ids": ids})
        return found


def _by_key(
    questions: Sequence[NewQuestion], found: Sequence[Any]
) -> dict[NewQuestion, Added]:
    """By key, never by position: one person must not get another's row."""
    added = {key: Added(id_, asked_at) for key, id_, asked_at, *_ in found}
    return {
        question: added[question.idempotency_key]
        for question in questions
        if question.idempotency_key in added
    }


def _length(outcome: Outcome) -> int:
    return len(outcome.answer or "")


def _rows(items: Sequence[object], fields: Mapping[str, str]) -> str:
    table = [[getattr(item, name) for name in fields] for item in items]
    return to_json(table).decode()
