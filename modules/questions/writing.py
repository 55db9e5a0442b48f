"""The two writes of a question's way, each shared by all who are there just then."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection

from core.batching import Batcher
from core.db import Database
from modules.questions import repository
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings
from modules.questions.sql import NEW, OUTCOME, statements


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a question; there is one for each."""

    question_id: int
    user_id: int
    status: Status
    attempts: Sequence[Mapping[str, Any]] = ()
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
        self, db: Database, limits: QuestionSettings, deadline_seconds: float
    ) -> None:
        """A question is taken for lost when it is pending after `deadline_seconds`."""
        self._db = db
        self._sql = statements(db.dialect, limits, deadline_seconds)
        self.adding = Batcher(self._add, again=self._add_the_rest, most=200)
        # Fewer: an answer may have hundreds of kilobytes.
        self.settling = Batcher(self._settle, again=self._settle, most=100)

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        await self.adding.drain()
        await self.settling.drain()

    async def _add(self, questions: Sequence[NewQuestion]) -> dict[NewQuestion, Added]:
        """Store pending questions; what is missing was refused."""
        sql = self._sql
        rows = _rows(questions, NEW)
        if sql.lock is None:
            async with self._db.statement() as connection:
                found = await _write(connection, sql.add, rows, sql.count)
        else:
            users = sorted({question.user_id for question in questions})
            async with self._db.work() as connection:
                await connection.execute(sql.lock, {"user_ids": users})
                found = await _write(connection, sql.add, rows, sql.count)
        return _by_key(questions, found)

    async def _add_the_rest(
        self, questions: Sequence[NewQuestion]
    ) -> Mapping[NewQuestion, Added]:
        """The same again, when nobody knows whether the first time was committed."""
        stored = await self._stored(questions)
        if rest := [question for question in questions if question not in stored]:
            stored |= await self._add(rest)
        # The server may have gone on with the first, and been in the second one's way.
        if refused := [question for question in questions if question not in stored]:
            stored |= await self._stored(refused)
        return stored

    async def _stored(
        self, questions: Sequence[NewQuestion]
    ) -> dict[NewQuestion, Added]:
        keys = [question.idempotency_key for question in questions]
        users = [question.user_id for question in questions]
        async with self._db.reading() as session:
            found = await repository.find_by_keys(session, users, keys)
        return _by_key(questions, found)

    async def _settle(self, outcomes: Sequence[Outcome]) -> Mapping[Outcome, Settled]:
        """Move pending questions to their ends; what is missing is pending no more."""
        sql = self._sql
        async with self._db.statement() as connection:
            found = await _write(
                connection, sql.settle, _rows(outcomes, OUTCOME), sql.spend
            )
        settled = {row.id: Settled(row.answered_at) for row in found}
        return {
            outcome: settled[outcome.question_id]
            for outcome in outcomes
            if outcome.question_id in settled
        }


def _by_key(
    questions: Sequence[NewQuestion], rows: Sequence[Any]
) -> dict[NewQuestion, Added]:
    """By key, never by position: one person must not get another's row."""
    found = {row.idempotency_key: Added(row.id, row.asked_at) for row in rows}
    return {
        question: found[question.idempotency_key]
        for question in questions
        if question.idempotency_key in found
    }


def _rows(items: Sequence[object], fields: Mapping[str, str]) -> str:
    return json.dumps([[getattr(item, name) for name in fields] for item in items])


async def _write(
    connection: AsyncConnection,
    statement: Executable,
    rows: str,
    following: Sequence[Executable],
) -> Sequence[Any]:
    found = (await connection.execute(statement, {"rows": rows})).all()
    if found and following:
        ids = json.dumps([row.id for row in found])
        for counting in following:
            await connection.execute(counting, {"ids": ids})
    return found
