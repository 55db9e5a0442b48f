"""The contract of a provider, and what the rest of the application may know of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from pydantic import Field

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
    streamed: bool = False
    """Somebody reads the pieces as they come; else one Delta with all of it is best."""


class Delta(NamedTuple):
    """The next piece of an answer; an empty one says that the model is thinking."""

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

        How long it may take, how often it is tried again and how large its answer may
        be is none of its business: all of that is `failover`. Being closed early or
        cancelled must close the connection to the backend.
        """


@runtime_checkable
class OffersModels(Protocol):
    """A backend that can say which models it has, which costs nothing."""

    async def models(self) -> tuple[str, ...]:
        """The models' names, none if it does not tell. Raises a ProviderError."""


class ProviderOptions(Section):
    """What every `[providers.NAME]` table holds; a plugin adds its own keys."""

    type: str
    """Which plugin reads this table."""
    first_token_seconds: float = Field(30, gt=0, le=3600)
    """How long it may think before it begins to answer. An answer that nobody reads as
    it comes arrives whole; all of that is limited, while another could be asked."""
    idle_seconds: float = Field(20, gt=0, le=3600)
    """How long it may pause between two deltas, whatever else it sends."""
    max_concurrency: int = Field(2_000, gt=0)
    """How many questions it is given at a time."""
    max_waiting: int = Field(64, ge=0)
    """How many more may wait for a place, each for `wait_seconds`."""
    wait_seconds: float = Field(2, gt=0, le=3600)
    """How long a question waits for a place."""
    breaker_calls: int = Field(10, ge=0)
    """It is left alone for 10 s when half of so many calls or more failed in 20 s; 0
    is never."""

    @property
    def model_shown(self) -> str | None:
        """The model's name for people, where there is one."""
        model = getattr(self, "model", None)
        return None if model is None else str(model)

    @property
    def host_shown(self) -> str | None:
        """Where its backend is, for people: a host and perhaps a port."""
        return None


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
    one_process: bool = False
    """It takes so much that a server of several processes must not open it in each."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer, and who gave it."""

    text: str
    provider: str
    model: str
    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Attempt:
    """One provider's turn: `outcome` is "answered", "cancelled" or an error's code."""

    provider: str
    outcome: str
    milliseconds: int


class Listener(Protocol):
    """Whoever reads an answer while it is given."""

    async def hear(self, text: str) -> None:
        """Take the next piece; returns once there is room for another."""


@dataclass(slots=True)
class Progress:
    """An answer in the making: it survives whatever becomes of the call."""

    listener: Listener | None = None
    attempts: list[Attempt] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What has come of the answer, fit to be stored."""
        return "".join(self.pieces)


class Chat(Protocol):
    """Whatever the operator has configured to answer."""

    @property
    def deadline_seconds(self) -> float:
        """After how long there is an answer, or none."""

    async def answer(self, content: str, progress: Progress) -> Answer:
        """Raises the ProviderError of the last provider that was tried."""


class ProviderError(DomainError):
    """The language model did not answer. Each one is also a kind of `core.errors`."""

    upstream_status: int | None = None
    """The backend's HTTP status, for the operator's log only."""

    @property
    def told_wait(self) -> int | None:
        """Seconds that the backend itself asked us to wait, None when it did not."""
        wait: Any = vars(self).get("retry_after_seconds")
        return wait if isinstance(wait, int) else None

    def __init__(self, detail: str = "", **members: Any) -> None:
        # By name: what `Invalid` takes by position are errors of fields.
        super().__init__(detail=detail, **members)


class ProviderUnreachable(ProviderError, UpstreamFailed):
    """The language model cannot be reached."""


class ProviderTls(ProviderError, UpstreamFailed):
    """No connection to the language model that can be trusted."""


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


class ProviderBusy(ProviderError, Unavailable):
    """Too many questions wait for the language model."""

    code = "busy"
    retry_after_seconds = 1


class ProviderUnavailable(ProviderError, Unavailable):
    """The language model is left alone for a while, until it may work again."""


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
    ProviderBusy,
    ProviderUnavailable,
)
