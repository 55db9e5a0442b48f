"""A question's way: stored, asked with no connection held, settled once."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from random import getrandbits
from typing import Any, NamedTuple, Protocol

from core.db import Database
from core.errors import (
    ClientGone,
    DomainError,
    FieldError,
    Internal,
    Invalid,
    Unavailable,
)
from core.security import InvalidToken
from core.text import is_blank
from modules.questions import repository
from modules.questions.domain import (
    IdempotencyKeyReused,
    NotStored,
    Question,
    QuestionWithdrawn,
    RequestInProgress,
    ServerShutdown,
    failure,
    question_of,
    usage_of,
)
from modules.questions.limits import Limits
from modules.questions.models import Status
from modules.questions.settings import QuestionSettings
from modules.questions.settling import Settling
from modules.questions.writing import Added, NewQuestion, Outcome, Settled, Writing
from providers.public import Answer, Chat, Listener, Progress, ProviderError

log = logging.getLogger(__name__)

# What may follow the model's deadline: cutting it off, and storing what came of it.
_LAST_SECONDS = 30.0
Wait = Callable[[Coroutine[Any, Any, Answer]], Awaitable[Answer]]
"""Awaits a call for as long as somebody waits for its answer."""


class Reader(Listener, Protocol):
    """Whoever reads a question's answer while it is given."""

    def accepted(self, question_id: int) -> None:
        """The question is stored, and its model is about to be asked."""


class Asked(NamedTuple):
    """A question with its answer, which may have been given before."""

    question: Question
    is_replayed: bool = False


@dataclass(slots=True)
class _UnderWay:
    """A question whose model is being asked, or about to be."""

    user_id: int
    asker: asyncio.Task[Any]
    is_thinking: bool = False
    reason: DomainError | None = None

    def stop(self, reason: DomainError) -> None:
        """Ask the model no more; what is stored of it meanwhile stays as it is."""
        self.reason = self.reason or reason
        if self.is_thinking:
            self.is_thinking = False
            self.asker.cancel()


class Asking:
    """Asks questions, each once, and sees to it that every one comes to an end."""

    def __init__(
        self, db: Database, chat: Chat, limits: Limits, settings: QuestionSettings
    ) -> None:
        self._db = db
        self._chat = chat
        self._settings = settings
        self._lasts_seconds = chat.deadline_seconds + _LAST_SECONDS
        self._writing = Writing(
            db, settings, self._lasts_seconds, unclaimed=self._interrupt
        )
        self._settling = Settling(self._writing.settling)
        self._limits = limits
        self._askers: set[asyncio.Task[Any]] = set()
        self._under_way: dict[int, _UnderWay] = {}
        self._is_closing = False

    async def ask(
        self,
        user_id: int,
        content: str,
        wait: Wait,
        *,
        reader: Reader | None = None,
        key: str | None = None,
        route: str = "",
    ) -> Asked:
        """Store a question, get it answered, and store the answer.

        With a `reader` the answer is also told piece by piece. With a `key` nothing is
        asked that was asked with it before, on the same `route`: what came of that is
        told once more. Raises Invalid for the content, IdempotencyKeyReused or
        RequestInProgress for the key, TooMany for a limit, a ProviderError that names
        the `question_id` when no answer came, and QuestionWithdrawn when the question
        or its account was deleted meanwhile.
        """
        self._check(content)
        fingerprint = None if key is None else _fingerprint(route, content)
        new = NewQuestion(
            user_id, content, f"{getrandbits(128):032x}", key, fingerprint
        )
        asker = asyncio.current_task()
        assert asker is not None
        self._askers.add(asker)
        try:
            added = await self._add(new)
            if added is None:
                return await self._not_added(new, reader)
            return Asked(await self._answered(new, added, wait, reader, asker))
        finally:
            self._askers.discard(asker)

    def withdraw(self, question_id: int) -> None:
        """Ask the model no more about a question that was deleted."""
        if (found := self._under_way.get(question_id)) is not None:
            found.stop(QuestionWithdrawn())

    def withdraw_all(self, user_id: int) -> None:
        """The same for every question of somebody who is gone."""
        for found in list(self._under_way.values()):
            if found.user_id == user_id:
                found.stop(QuestionWithdrawn())

    async def drain(self) -> None:
        """Interrupt what is still being asked, and wait until all is stored."""
        self._is_closing = True
        for found in list(self._under_way.values()):
            found.stop(ServerShutdown())
        while self._askers:
            await asyncio.wait(set(self._askers))
        await self._writing.drain()
        await self._settling.drain()

    def _check(self, content: str) -> None:
        limits = self._settings
        if is_blank(content):
            raise _invalid("blank", "Must not be blank.")
        if len(content) > limits.longest_question_chars:
            most = limits.longest_question_chars
            raise _invalid("too_long", f"Must have at most {most} characters.")
        if len(content.encode()) > limits.longest_question_bytes:
            most = limits.longest_question_bytes
            raise _invalid("too_long", f"Must have at most {most} bytes.")

    async def _add(self, new: NewQuestion) -> Added | None:
        """Store a question. One that nobody waits for by then is ended at once."""
        adding = self._writing.adding.submit(new)
        try:
            return await adding
        except asyncio.CancelledError:
            # What comes later is unclaimed; this has come, and could not be taken.
            has_failed = adding.cancelled() or adding.exception() is not None
            if not has_failed and (added := adding.result()) is not None:
                self._interrupt(new, added)
            raise

    def _interrupt(self, new: NewQuestion, added: Added) -> None:
        """End a question at once that nobody waits for any more."""
        outcome = Outcome(
            added.id,
            new.user_id,
            Status.INTERRUPTED,
            error_code=ServerShutdown.code,
        )
        self._settling.submit(outcome, self._lasts_seconds)

    async def _not_added(self, new: NewQuestion, reader: Reader | None) -> Asked:
        """Tell what came of the same question before, or raise why it is refused."""
        earlier = None
        async with self._db.reading() as session:
            if not await repository.may_ask(session, new.user_id):
                raise InvalidToken
            if new.client_key is not None:
                earlier = await repository.find_by_client_key(
                    session, new.user_id, new.client_key
                )
            if earlier is None:
                raise await self._limits.exceeded(session, new.user_id)
        # Before anything else of what is stored is looked at.
        if earlier.fingerprint != new.fingerprint:
            raise IdempotencyKeyReused
        question = _ended(earlier)
        if reader is not None:
            reader.accepted(question.id)
            await reader.hear(question.answer or "")
        return Asked(question, is_replayed=True)

    async def _answered(
        self,
        new: NewQuestion,
        added: Added,
        wait: Wait,
        reader: Reader | None,
        asker: asyncio.Task[Any],
    ) -> Question:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._lasts_seconds
        under_way = self._under_way[added.id] = _UnderWay(new.user_id, asker)
        try:
            if reader is not None:
                reader.accepted(added.id)
            # No connection is held from here until the answer is there.
            progress = Progress(reader)
            end = await self._asked(under_way, new.content, wait, progress)
        finally:
            del self._under_way[added.id]
        attempts = tuple(progress.attempts)
        outcome = Outcome(added.id, new.user_id, attempts=attempts, **end.columns)
        settled = await self._settle(outcome, deadline - loop.time())
        if isinstance(end.failure, DomainError):
            told = [asdict(attempt) for attempt in attempts]
            end.failure.members |= {"question_id": added.id, "attempts": told}
        if end.failure is not None:
            raise end.failure
        return _question(new, added, outcome, settled)

    async def _asked(
        self, under_way: _UnderWay, content: str, wait: Wait, progress: Progress
    ) -> "_End":
        """What to store, and what to raise once it is stored."""
        if self._is_closing or under_way.reason is not None:
            shutdown = under_way.reason or ServerShutdown()
            return _broken_off(shutdown.code, shutdown, progress)
        under_way.is_thinking = True
        try:
            return _complete(await wait(self._chat.answer(content, progress)))
        except ProviderError as error:
            return _failed(error, progress)
        except ClientGone as gone:
            return _broken_off(gone.code, gone, progress)
        except asyncio.CancelledError:
            if under_way.reason is not None:
                under_way.asker.uncancel()
            # Else a server that ends cancels a request. Whoever waits is still told.
            reason = under_way.reason or ServerShutdown()
            return _broken_off(reason.code, reason, progress)
        except Exception as error:
            return _broken_off(Internal.code, error, progress)
        finally:
            under_way.is_thinking = False

    async def _settle(self, outcome: Outcome, seconds: float) -> Settled:
        """Store an outcome, even if whoever waits for it is cancelled."""
        try:
            settled = await asyncio.shield(self._settling.submit(outcome, seconds))
            row = None if settled is not None else await self._stored(outcome)
        except Unavailable as error:
            raise NotStored(question_id=outcome.question_id) from error
        # Apart: what it may raise is unavailable too, but is what is stored.
        return settled or _fate(outcome, row)

    async def _stored(self, outcome: Outcome) -> Any | None:
        """What there is of a question that was pending no more."""
        async with self._db.reading() as session:
            return await repository.find(session, outcome.question_id, outcome.user_id)


def _fate(outcome: Outcome, row: Any | None) -> Settled:
    """What to make of an end that came before this one; raises it, if it is another."""
    if row is None:
        raise QuestionWithdrawn
    stored = (row.status, row.answer, row.error_code)
    if stored != (outcome.status, outcome.answer, outcome.error_code):
        # Too late: it was taken for lost, and what is final stays so.
        fields = {"question_id": row.id, "status": row.status}
        log.warning("question.answered_too_late", extra=fields)
        raise failure(row.error_code or "", row.id, row.attempts or ())
    # Stored by a connection that died before it could say so.
    return Settled(row.answered_at)


class _End(NamedTuple):
    """How asking has ended: what to store, and what to raise after that."""

    columns: Mapping[str, Any]
    failure: Exception | None = None


def _complete(answer: Answer) -> _End:
    return _End(
        {
            "status": Status.ANSWERED,
            "answer": answer.text,
            "provider": answer.provider,
            "model": answer.model,
            "finish_reason": answer.reason,
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        }
    )


def _failed(error: ProviderError, progress: Progress) -> _End:
    return _End(_partial(Status.FAILED, error.code, progress), error)


def _broken_off(code: str, error: Exception, progress: Progress) -> _End:
    return _End(_partial(Status.INTERRUPTED, code, progress), error)


def _partial(status: Status, code: str, progress: Progress) -> Mapping[str, Any]:
    # Half an answer is worth keeping: somebody may have read it, and it was paid for.
    return {"status": status, "error_code": code, "answer": progress.text or None}


def _ended(row: Any) -> Question:
    """A question that was asked before; raises what it ended with, if not an answer."""
    if row.status == Status.PENDING:
        raise RequestInProgress(question_id=row.id)
    if row.status != Status.ANSWERED:
        error = failure(row.error_code, row.id, row.attempts or ())
        error.is_replayed = True
        raise error
    return question_of(row)


def _question(
    new: NewQuestion,
    added: Added,
    outcome: Outcome,
    settled: Settled,
) -> Question:
    """What is stored by now, without reading it."""
    return Question(
        id=added.id,
        user_id=new.user_id,
        content=new.content,
        status=outcome.status,
        answer=outcome.answer,
        provider=outcome.provider,
        model=outcome.model,
        usage=usage_of(outcome.prompt_tokens, outcome.completion_tokens),
        finish_reason=outcome.finish_reason,
        error_code=outcome.error_code,
        attempts=outcome.attempts,
        asked_at=added.asked_at,
        answered_at=settled.answered_at,
    )


def _fingerprint(route: str, content: str) -> str:
    return hashlib.sha256(json.dumps([route, content]).encode()).hexdigest()


def _invalid(code: str, message: str) -> Invalid:
    return Invalid(FieldError(("body", "content"), code, message))
