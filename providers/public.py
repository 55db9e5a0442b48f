"""The contract of a provider, and what the rest of the application may know of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from core.errors import (
    DomainError,
    Invalid,
    Unavailable,
    UpstreamFailed,
    UpstreamTimedOut,
)
from core.tables import Section

FinishReason = Literal["stop", "length", "filtered", "other"]
FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question, alone: there is no conversation before it."""

    content: str
    system_prompt: str = ""
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by the backend's own count; None is what it did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer: without one it is not complete."""

    model: str
    reason: FinishReason
    usage: Usage = Usage()


class ChatModel(Protocol):
    """One configured backend."""

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        """Yield deltas, then one Finish. Raises a ProviderError and nothing else.

        Being closed early or cancelled must close the connection to the backend.
        """


class ProviderOptions(Section):
    """What every `[providers.NAME]` table holds; a plugin adds its own keys."""

    type: str


class ProviderNotUsable(Exception):
    """A provider cannot be opened here; the message says why in one line."""


@dataclass(frozen=True)
class ProviderType:
    """What a plugin brings: a type of provider and how one is opened."""

    name: str
    options: type[ProviderOptions]
    open: Callable[[str, Any], AbstractAsyncContextManager[ChatModel]]
    """Given the table's name and its options; raises ProviderNotUsable."""
    demonstrates: Callable[[Any], str | None] = lambda options: None
    """Given the options: what to call it if it is only a demonstration, else None."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer, and who gave it."""

    text: str
    provider: str
    model: str
    reason: FinishReason
    usage: Usage


class Chat(Protocol):
    """Whatever the operator has configured to answer."""

    async def answer(self, content: str) -> Answer:
        """Raises the ProviderError of the last provider that was tried."""


class ProviderError(DomainError):
    """The language model did not answer. Each one is also a kind of `core.errors`."""

    upstream_status: int | None = None
    """The backend's HTTP status, for the operator's log only."""

    def __init__(self, detail: str = "", **members: Any) -> None:
        # By name: what `Invalid` takes by position are errors of fields.
        super().__init__(detail=detail, **members)


class ProviderUnreachable(ProviderError, UpstreamFailed):
    """The language model cannot be reached."""


class ProviderTls(ProviderError, UpstreamFailed):
    """The language model's certificate cannot be trusted."""


class ProviderTimeout(ProviderError, UpstreamTimedOut):
    """The language model took too long."""


class ProviderRateLimited(ProviderError, Unavailable):
    """The language model is asked too often at the moment."""


class ProviderOverloaded(ProviderError, Unavailable):
    """The language model is overloaded."""


class ProviderFailed(ProviderError, UpstreamFailed):
    """The language model reported a failure of its own."""


class ProviderAuth(ProviderError, UpstreamFailed):
    """The language model does not accept this server's credentials."""


class ProviderMisconfigured(ProviderError, UpstreamFailed):
    """The language model is not where this server looks for it."""


class ProviderRejected(ProviderError, Invalid):
    """The language model does not accept this question."""

    code = "provider_rejected"


class ProviderBadResponse(ProviderError, UpstreamFailed):
    """The language model sent something that is not an answer."""


class ProviderStreamBroken(ProviderError, UpstreamFailed):
    """The language model's answer broke off."""


class AnswerTooLarge(ProviderError, UpstreamFailed):
    """The language model's answer is too large."""


class ProviderBug(ProviderError, UpstreamFailed):
    """The provider's plugin failed."""


PROVIDER_ERRORS = (
    ProviderUnreachable,
    ProviderTls,
    ProviderTimeout,
    ProviderRateLimited,
    ProviderOverloaded,
    ProviderFailed,
    ProviderAuth,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderBadResponse,
    ProviderStreamBroken,
    AnswerTooLarge,
    ProviderBug,
)
