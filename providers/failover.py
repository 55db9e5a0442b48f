"""The one layer between a question and the providers: deadline, fallback, bounds."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from core.errors import Unavailable
from core.text import storable
from providers.public import (
    FINISH_REASONS,
    PROVIDER_ERRORS,
    Answer,
    AnswerTooLarge,
    ChatModel,
    ChatRequest,
    Delta,
    Finish,
    ProviderBadResponse,
    ProviderBug,
    ProviderError,
    ProviderRejected,
    ProviderStreamBroken,
    ProviderTimeout,
    Usage,
)
from providers.settings import LlmSettings

log = logging.getLogger(__name__)

_LONGEST_MODEL_NAME = 200
_MOST_TOKENS = 2**31 - 1
_LONGEST_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Backend:
    """One opened provider under its configured name."""

    name: str
    model: ChatModel


class FailoverChat:
    """`Chat` over the configured providers: the first answers, the others stand by."""

    def __init__(self, backends: Sequence[Backend], settings: LlmSettings) -> None:
        self._backends = backends
        self._settings = settings

    async def answer(self, content: str) -> Answer:
        """Ask one provider after the other until one answers, within one deadline."""
        request = ChatRequest(
            content,
            system_prompt=self._settings.system_prompt,
            temperature=self._settings.temperature,
            max_tokens=self._settings.max_tokens,
        )
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                return await self._first_answer(request)
        except TimeoutError:
            raise ProviderTimeout from None

    async def _first_answer(self, request: ChatRequest) -> Answer:
        *others, last = self._backends
        for backend in others:
            try:
                return await self._ask(backend, request)
            except ProviderRejected:
                # The question is at fault: another provider would be asked in vain.
                raise
            except ProviderError:
                continue
        return await self._ask(last, request)

    async def _ask(self, backend: Backend, request: ChatRequest) -> Answer:
        try:
            return await self._collect(backend, request)
        except ProviderError as error:
            failure, raised = _without_words(error), ""
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: it leaked out of the plugin.
            failure, raised = ProviderBug(), type(exc).__name__
        except (Exception, SystemExit) as exc:
            failure, raised = ProviderBug(), type(exc).__name__
        _log_failure(backend, failure, raised)
        # Raised only here, and so with no context: that may hold the provider's key.
        raise failure

    async def _collect(self, backend: Backend, request: ChatRequest) -> Answer:
        pieces: list[str] = []
        size = 0
        async with _closing(backend.model.stream(request)) as events:
            async for event in events:
                if isinstance(event, Finish):
                    return _answer(backend.name, "".join(pieces), event)
                if not isinstance(event, Delta):
                    raise ProviderBug
                size += len(event.text.encode("utf-8", "surrogatepass"))
                if size > self._settings.longest_answer_bytes:
                    raise AnswerTooLarge
                pieces.append(event.text)
        raise ProviderStreamBroken


@asynccontextmanager
async def _closing(
    events: AsyncIterator[Delta | Finish],
) -> AsyncIterator[AsyncIterator[Delta | Finish]]:
    """Close a provider's stream at once, also when it is left early."""
    try:
        yield events
    finally:
        if (close := getattr(events, "aclose", None)) is not None:
            await close()


def _answer(provider: str, text: str, finish: Finish) -> Answer:
    if not text:
        raise ProviderBadResponse
    usage = Usage(
        _clamped(finish.usage.prompt_tokens), _clamped(finish.usage.completion_tokens)
    )
    model = storable(finish.model)[:_LONGEST_MODEL_NAME]
    reason = finish.reason if finish.reason in FINISH_REASONS else "other"
    # Answers are untrusted bytes: PostgreSQL refuses NUL, UTF-8 lone surrogates.
    return Answer(storable(text), provider, model, reason, usage)


def _clamped(tokens: int | None) -> int | None:
    return None if tokens is None else max(0, min(int(tokens), _MOST_TOKENS))


def _without_words(error: ProviderError) -> ProviderError:
    """The same kind of error, with nothing in it that a backend or a plugin said."""
    kind = next((k for k in PROVIDER_ERRORS if isinstance(error, k)), ProviderBug)
    same, wait = kind(), error.retry_after_seconds
    if isinstance(same, Unavailable) and isinstance(wait, int):
        same.retry_after_seconds = max(1, min(wait, _LONGEST_WAIT_SECONDS))
    if isinstance(error.upstream_status, int):
        same.upstream_status = error.upstream_status
    return same


def _log_failure(backend: Backend, failure: ProviderError, raised: str) -> None:
    fields: dict[str, object] = {"provider": backend.name, "code": failure.code}
    fields |= {"raised": raised} if raised else {}
    if failure.upstream_status is not None:
        fields["upstream_status"] = failure.upstream_status
    log.warning("provider.failed", extra=fields)
