"""What a question is, and what can become of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core.errors import (
    ClientGone,
    Conflict,
    DomainError,
    Gone,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
)
from modules.questions.models import Status
from providers.public import PROVIDER_ERRORS, Attempt, Usage


class QuestionNotFound(NotFound):
    """There is no such question among yours."""


class QuestionWithdrawn(Gone):
    """The question was deleted, or its account, while it was being answered."""


class ServerShutdown(Unavailable):
    """The server is shutting down."""


class OwnerLost(Unavailable):
    """The server that asked this question ended before there was an answer."""


class NotStored(Unavailable):
    """The answer came, but could not be stored yet."""


class Abandoned(Conflict):
    """Whoever asked this question hung up before there was an answer."""

    code = ClientGone.code


class RequestInProgress(Conflict):
    """The question that was sent with this Idempotency-Key is still being answered."""

    retry_after_seconds = 2


class IdempotencyKeyReused(Invalid):
    """This Idempotency-Key was sent with another question."""

    code = "idempotency_key_reused"


@dataclass(slots=True)
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


def question_of(row: Any) -> Question:
    """A row of the database."""
    return Question(
        id=row.id,
        user_id=row.user_id,
        content=row.content,
        status=Status(row.status),
        answer=row.answer,
        provider=row.provider,
        model=row.model,
        usage=usage_of(row.prompt_tokens, row.completion_tokens),
        finish_reason=row.finish_reason,
        error_code=row.error_code,
        attempts=tuple(Attempt(**attempt) for attempt in row.attempts or ()),
        asked_at=row.asked_at,
        answered_at=row.answered_at,
        username=getattr(row, "username", None),
    )


def usage_of(prompt_tokens: int | None, completion_tokens: int | None) -> Usage | None:
    """None when nothing is known of either."""
    if prompt_tokens is None and completion_tokens is None:
        return None
    return Usage(prompt_tokens, completion_tokens)


ENDS: Mapping[str, type[DomainError]] = {
    kind.code: kind
    for kind in (*PROVIDER_ERRORS, Abandoned, Internal, OwnerLost, ServerShutdown)
}
"""By their codes: what a question without an answer may have ended with."""


def failure(
    code: str, question_id: int, attempts: Sequence[Mapping[str, Any]]
) -> DomainError:
    """The problem that a question without an answer ended with."""
    kind = ENDS.get(code, Internal)
    return kind(question_id=question_id, attempts=list(attempts))
