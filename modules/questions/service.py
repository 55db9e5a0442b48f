"""A question's way: stored, asked with no connection held, settled once."""

import asyncio
import logging
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Protocol

from core.batching import Batcher
from core.db import Database
from core.errors import (
    ClientGone,
    DomainError,
    FieldError,
    Gone,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
)
from core.pages import cut_page, decode_cursor, encode_cursor, every
from core.security import InvalidToken
from core.text import is_blank
from modules.questions import repository
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings
from providers.public import (
    Answer,
    Attempt,
    Chat,
    Listener,
    Progress,
    ProviderError,
    Usage,
)

log = logging.getLogger(__name__)

_CURSOR = "questions"
# Few: an answer may have as many kilobytes.
_READ_AT_A_TIME = 100
Wait = Callable[[Coroutine[Any, Any, Answer]], Awaitable[Answer]]
"""Awaits a call for as long as somebody waits for its answer."""


class Reader(Listener, Protocol):
    """Whoever reads a question's answer while it is given."""

    def accepted(self, question_id: int) -> None:
        """The question is stored, and its model is about to be asked."""


class QuestionNotFound(NotFound):
    """There is no such question among yours."""


class QuestionWithdrawn(Gone):
    """The account was deleted while the question was being answered."""


class ServerShutdown(Unavailable):
    """The server is shutting down."""


class NotStored(Unavailable):
    """The answer came, but could not be stored."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it is stored."""

    id: int
    user_id: int
    content: str
    status: Status
    answer: str | None
    provider: str | None
    model: str | None
    usage: Usage | None
    finish_reason: str | None
    error_code: str | None
    attempts: tuple[Attempt, ...]
    asked_at: datetime
    answered_at: datetime | None
    username: str | None = None


@dataclass(frozen=True, slots=True)
class Filters:
    """What an administrator's list is narrowed to; None does not narrow."""

    user_id: int | None = None
    status: Status | None = None
    asked_from: datetime | None = None
    asked_before: datetime | None = None


class Questions:
    """Everything that people do with questions."""

    def __init__(self, db: Database, chat: Chat, settings: QuestionSettings) -> None:
        self._db = db
        self._chat = chat
        self.settings = settings
        self._adding = Batcher(self._add, most=200)
        self._asking: set[asyncio.Task[Any]] = set()
        self._settling: set[asyncio.Task[Question | None]] = set()

    async def ask(
        self, user_id: int, content: str, wait: Wait, reader: Reader | None = None
    ) -> Question:
        """Store a question, get it answered, and store the answer.

        With a `reader` the answer is also told piece by piece. Raises Invalid for the
        content, a ProviderError that names the `question_id` when no answer came, and
        QuestionWithdrawn when the account went meanwhile.
        """
        self._check(content)
        async with self._under_way():
            new = repository.NewQuestion(user_id, content, uuid.uuid4().hex)
            question_id = await self._adding.find(new)
            if question_id is None:
                raise InvalidToken
            if reader is not None:
                reader.accepted(question_id)
            # No connection is held from here until the answer is there.
            progress = Progress(reader)
            outcome, failure = await self._outcome(content, wait, progress)
            settled = await self._settle(question_id, outcome)
        if settled is None:
            raise QuestionWithdrawn
        if isinstance(failure, DomainError):
            failure.members["question_id"] = question_id
            failure.members["attempts"] = outcome["attempts"]
        if failure is not None:
            raise failure
        return settled

    async def _add(
        self, questions: Sequence[repository.NewQuestion]
    ) -> dict[repository.NewQuestion, int]:
        async with self._db.statement() as connection:
            return await repository.add_all(connection, questions)

    @asynccontextmanager
    async def _under_way(self) -> AsyncIterator[None]:
        """Let `drain` find whoever asks at the moment."""
        asker = asyncio.current_task()
        assert asker is not None
        self._asking.add(asker)
        try:
            yield
        finally:
            self._asking.discard(asker)

    async def _outcome(
        self, content: str, wait: Wait, progress: Progress
    ) -> tuple[dict[str, Any], Exception | None]:
        """What to store, and what to raise once it is stored."""
        failure: Exception | None = None
        try:
            outcome = _answered(await wait(self._chat.answer(content, progress)))
        except ProviderError as error:
            outcome, failure = _ended(Status.FAILED, error.code, progress), error
        except ClientGone as gone:
            outcome, failure = _ended(Status.INTERRUPTED, gone.code, progress), gone
        except asyncio.CancelledError:
            # Only a server that ends cancels a request. Whoever waits is still told.
            failure = ServerShutdown()
            outcome = _ended(Status.INTERRUPTED, ServerShutdown.code, progress)
        except Exception as error:
            outcome, failure = (
                _ended(Status.INTERRUPTED, Internal.code, progress),
                error,
            )
        attempts = [asdict(attempt) for attempt in progress.attempts]
        return outcome | {"attempts": attempts}, failure

    async def newest(self, user_id: int) -> list[Question]:
        """The user's own last questions of any status, newest first."""
        async with self._db.reading() as session:
            size = self.settings.history_size
            rows = await repository.newest(session, user_id, size)
        return [_question(row) for row in rows]

    def all_of(self, user_id: int) -> AsyncGenerator[Question, None]:
        """The user's own questions of any status, newest first, read as they are taken.

        What is asked meanwhile is not among them.
        """

        async def read(last: Question | None) -> list[Question]:
            before = None if last is None else last.id
            async with self._db.reading() as session:
                rows = await repository.older(
                    session, user_id, before=before, limit=_READ_AT_A_TIME
                )
            return [_question(row) for row in rows]

        return every(read)

    async def find(self, question_id: int, *, owner: int | None) -> Question:
        """Raises QuestionNotFound; `owner` None may see anybody's."""
        async with self._db.reading() as session:
            row = await repository.find(session, question_id, owner)
        if row is None:
            raise QuestionNotFound
        return _question(row)

    async def page(
        self, filters: Filters, *, cursor: str | None, limit: int
    ) -> tuple[list[Question], str | None]:
        """Anybody's questions, newest first, and the next page's cursor if any."""
        async with self._db.reading() as session:
            rows = await repository.page(
                session,
                after=decode_cursor(_CURSOR, cursor),
                limit=limit + 1,
                user_id=filters.user_id,
                status=filters.status,
                asked_from=filters.asked_from,
                asked_before=filters.asked_before,
            )
        shown, has_more = cut_page(rows, limit)
        following = encode_cursor(_CURSOR, shown[-1].id) if has_more else None
        return [_question(row) for row in shown], following

    async def drain(self) -> None:
        """Interrupt what is still being asked, and wait until all is stored."""
        for asker in self._asking:
            asker.cancel()
        while self._asking:
            await asyncio.sleep(0.01)
        await self._adding.drain()
        # An asker who was cancelled once more has left its outcome to us.
        await asyncio.gather(*self._settling, return_exceptions=True)

    def _check(self, content: str) -> None:
        limits = self.settings
        if is_blank(content):
            raise _invalid("blank", "Must not be blank.")
        if len(content) > limits.longest_question_chars:
            most = limits.longest_question_chars
            raise _invalid("too_long", f"Must have at most {most} characters.")
        if len(content.encode()) > limits.longest_question_bytes:
            most = limits.longest_question_bytes
            raise _invalid("too_long", f"Must have at most {most} bytes.")

    async def _settle(
        self, question_id: int, outcome: dict[str, Any]
    ) -> Question | None:
        """Store an outcome even if whoever waits for it is cancelled."""
        task = asyncio.create_task(self._store(question_id, outcome))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return await asyncio.shield(task)

    async def _store(
        self, question_id: int, outcome: dict[str, Any]
    ) -> Question | None:
        try:
            async with self._db.statement() as connection:
                row = await repository.settle(connection, question_id, outcome)
        except DomainError as error:
            fields = {"question_id": question_id, "code": error.code}
            log.error("question.not_stored", extra=fields)
            raise NotStored(question_id=question_id) from error
        fields = {"question_id": question_id, "status": str(outcome["status"])}
        log.info("question.settled", extra=fields)
        return None if row is None else _question(row)


def _invalid(code: str, message: str) -> Invalid:
    return Invalid(FieldError(("body", "content"), code, message))


def _answered(answer: Answer) -> dict[str, Any]:
    return {
        "status": Status.ANSWERED,
        "answer": answer.text,
        "provider": answer.provider,
        "model": answer.model,
        "finish_reason": answer.reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }


def _ended(status: Status, code: str, progress: Progress) -> dict[str, Any]:
    # Half an answer is worth keeping: somebody may have read it, and it was paid for.
    return {"status": status, "error_code": code, "answer": progress.text or None}


def _question(row: Any) -> Question:
    usage = Usage(row.prompt_tokens, row.completion_tokens)
    return Question(
        id=row.id,
        user_id=row.user_id,
        content=row.content,
        status=Status(row.status),
        answer=row.answer,
        provider=row.provider,
        model=row.model,
        usage=usage if usage != Usage() else None,
        finish_reason=row.finish_reason,
        error_code=row.error_code,
        attempts=tuple(Attempt(**attempt) for attempt in row.attempts or ()),
        asked_at=row.asked_at,
        answered_at=row.answered_at,
        username=getattr(row, "username", None),
    )
