"""The one layer between a question and the providers.

Deadline, retry, fallback, circuit breaker and bulkhead are here and nowhere else: two
layers that try again would multiply.
"""

import asyncio
import logging
from collections.abc import Sequence

from core.errors import ClientGone, Unavailable
from core.text import storable
from providers.backend import LONGEST_WAIT_SECONDS, Backend, Timing
from providers.patience import Patience
from providers.public import (
    FINISH_REASONS,
    PROVIDER_ERRORS,
    Answer,
    AnswerTooLarge,
    Attempt,
    ChatRequest,
    Delta,
    Finish,
    Progress,
    ProviderBadResponse,
    ProviderBug,
    ProviderBusy,
    ProviderError,
    ProviderFailed,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStreamBroken,
    ProviderUnavailable,
    ProviderUnreachable,
    Usage,
)
from providers.settings import LlmSettings

log = logging.getLogger(__name__)

_LONGEST_MODEL_NAME = 200
_MOST_TOKENS = 2**31 - 1
MOST_TRIES = 3
_LONGEST_PAUSE_SECONDS = 10.0
_BACKOFF_SECONDS = 0.25
_LETTING_GO_SECONDS = 1.0
# What may be over a moment later.
_PASSING = (
    ProviderFailed,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderStreamBroken,
    ProviderUnreachable,
)
# Nobody was asked: the provider was full, or is left alone.
_NOT_ASKED = (ProviderBusy, ProviderUnavailable)


class FailoverChat:
    """`Chat` over the configured providers: the first answers, the others stand by."""

    def __init__(
        self,
        backends: Sequence[Backend],
        settings: LlmSettings,
        timing: Timing | None = None,
    ) -> None:
        self.backends = tuple(backends)
        self._settings = settings
        self._timing = timing or Timing()

    @property
    def deadline_seconds(self) -> float:
        """The whole request's: queue, retries and fallbacks included."""
        return self._settings.deadline_seconds

    async def answer(self, content: str, progress: Progress) -> Answer:
        """Ask one provider after the other until one answers, within one deadline."""
        request = ChatRequest(
            content,
            system_prompt=self._settings.system_prompt,
            temperature=self._settings.temperature,
            max_tokens=self._settings.max_tokens,
            streamed=progress.listener is not None,
        )
        question = _Question(request, progress, self._settings, self._timing)
        failure: ProviderError | None = None
        for number, backend in enumerate(self.backends):
            error = await question.ask(backend, self.backends[number + 1 :])
            if question.answer is not None:
                return question.answer
            failure = _worth_telling(failure, error)
            if question.is_over(error):
                break
        # Raised only here, and so with no context: that may hold the provider's key.
        raise failure or ProviderUnavailable()


def _worth_telling(
    first: ProviderError | None, second: ProviderError | None
) -> ProviderError | None:
    # What a provider really said weighs more than that another is left alone.
    if first is None or not isinstance(second, _NOT_ASKED):
        return second
    if not isinstance(first, _NOT_ASKED):
        return first
    return min(first, second, key=lambda error: error.retry_after_seconds or 0)


class _Question:
    """One question's way through the providers: what it has used up, what came."""

    __slots__ = (
        "_deadline",
        "_is_probe",
        "_others",
        "_progress",
        "_request",
        "_settings",
        "_timing",
        "_tries_left",
        "answer",
    )

    def __init__(
        self,
        request: ChatRequest,
        progress: Progress,
        settings: LlmSettings,
        timing: Timing,
    ) -> None:
        self._request = request
        self._progress = progress
        self._settings = settings
        self._timing = timing
        self._deadline = timing.clock() + settings.deadline_seconds
        self._tries_left = MOST_TRIES
        self._others: Sequence[Backend] = ()
        self._is_probe = False
        self.answer: Answer | None = None

    @property
    def _remaining(self) -> float:
        return self._deadline - self._timing.clock()

    def is_over(self, failure: ProviderError | None) -> bool:
        """Whether nobody is to be asked any more."""
        is_heard = self._request.streamed and bool(self._progress.pieces)
        return (
            # The question is at fault: another provider would be asked in vain.
            isinstance(failure, ProviderRejected)
            # Half an answer has been read: another would not go on where it broke off.
            or is_heard
            or self._tries_left <= 0
            or self._remaining <= 0
        )

    async def ask(
        self, backend: Backend, others: Sequence[Backend]
    ) -> ProviderError | None:
        """Give one provider its turn, of one try or two; `others` are still to come.

        Returns why there is no answer, or None when there is one in `answer`.
        """
        self._others = others
        backend.budget.earn()
        failure = await self._try(backend)
        if failure is None or not await self._may_repeat(backend, failure):
            return failure
        again = await self._try(backend)
        return failure if isinstance(again, _NOT_ASKED) else again

    async def _may_repeat(self, backend: Backend, failure: ProviderError) -> bool:
        """Whether to ask the same one again; if so, the pause before it is over."""
        if not isinstance(failure, _PASSING) or self.is_over(failure):
            return False
        # Every other one that is there comes before a second try of the same.
        if self._tries_left <= self._others_ready:
            return False
        pause = self._pause(failure)
        if pause is None or backend.breaker.wait_seconds > pause:
            return False
        if not backend.budget.spend():
            return False
        await self._timing.sleep(pause)
        return True

    @property
    def _others_ready(self) -> int:
        return sum(other.breaker.wait_seconds == 0 for other in self._others)

    def _pause(self, failure: ProviderError) -> float | None:
        """Seconds before a second try, at random lest all come back at once."""
        jitter = _BACKOFF_SECONDS * self._timing.random()
        if (wait := failure.told_wait) is None:
            return jitter if jitter < self._remaining else None
        affordable = min(self._remaining / 2, _LONGEST_PAUSE_SECONDS)
        return wait + jitter if wait <= affordable else None

    async def _try(self, backend: Backend) -> ProviderError | None:
        started = self._timing.clock()
        outcome = "cancelled"
        try:
            failure = await self._admitted(backend)
            outcome = "answered" if failure is None else failure.code
            return failure
        finally:
            took_ms = round((self._timing.clock() - started) * 1000)
            self._progress.attempts.append(Attempt(backend.name, outcome, took_ms))

    async def _admitted(self, backend: Backend) -> ProviderError | None:
        """Pass the breaker and the bulkhead, and call."""
        if (closed := backend.is_closed_to()) is not None:
            return closed
        patience = min(backend.options.wait_seconds, self._remaining)
        try:
            async with backend.bulkhead.place(patience):
                # While this one waited, others may have found it broken.
                if (closed := backend.is_closed_to()) is not None:
                    return closed
                return await self._call(backend)
        except ProviderBusy as busy:
            return busy

    async def _call(self, backend: Backend) -> ProviderError | None:
        """How a call failed, in our words; None when there is an answer."""
        self._tries_left -= 1
        has_time = self._has_time_for(backend)
        self._is_probe = backend.breaker.begin()
        failure: ProviderError | None = None
        raised = ""
        try:
            # A plugin may cling to what it should let go: it gets a second chance.
            with Patience(
                self._first_limit(backend), self._remaining, _LETTING_GO_SECONDS
            ) as patience:
                self.answer = await self._heard(backend, patience)
        except ProviderError as error:
            failure = _without_words(error)
        except BaseException as exc:
            if not _is_bug(exc):
                backend.breaker.abandoned(is_probe=self._is_probe)
                raise
            failure, raised = ProviderBug(), type(exc).__name__
        backend.note(failure, is_probe=self._is_probe, had_time=has_time)
        if failure is not None:
            _log_failure(backend, failure, raised)
        return failure

    def _has_time_for(self, backend: Backend) -> bool:
        """Whether the others have left so much that a timeout is its own doing."""
        usual = min(
            backend.options.first_token_seconds, self._settings.deadline_seconds
        )
        return self._remaining >= usual / 2

    def _first_limit(self, backend: Backend) -> float:
        first = backend.options.first_token_seconds
        could_ask_others = self._others_ready and self._tries_left
        return first if self._request.streamed or could_ask_others else self._remaining

    async def _heard(self, backend: Backend, patience: Patience) -> Answer:
        """Hear one answer to its end."""
        listener, pieces = self._progress.listener, self._progress.pieces
        pieces.clear()
        cleaned = _Cleaned(self._settings.longest_answer_bytes)
        events = backend.model.stream(self._request)
        try:
            async for event in events:
                if text := cleaned.text_of(event):
                    if self._is_probe:
                        # It works again: nobody has to wait for a long answer's end.
                        self._is_probe = False
                        backend.note(None, is_probe=True)
                    pieces.append(text)
                    if listener is not None:
                        patience.of_the_reader()
                        await listener.hear(text)
                if isinstance(event, Finish):
                    return _answer(backend.name, self._progress.text, event)
                patience.renew(backend.options.idle_seconds)
            raise ProviderStreamBroken
        finally:
            # At once, also when it is left early; not every plugin's can be.
            if (close := getattr(events, "aclose", None)) is not None:
                await close()


def _is_bug(exc: BaseException) -> bool:
    """Whether a plugin raised what it may not; what ends the question is another's."""
    if isinstance(exc, asyncio.CancelledError):
        # If nobody cancelled us, it leaked out of the plugin.
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(exc, (Exception, SystemExit)) and not isinstance(exc, ClientGone)


class _Cleaned:
    """Untrusted text in pieces, made fit to be stored and sent.

    JSON may escape a character in two halves, and a backend send them apart: the first
    is held back until it is known whether the other one follows.
    """

    __slots__ = ("_bytes_left", "_half")

    def __init__(self, most_bytes: int) -> None:
        self._bytes_left = most_bytes
        self._half = ""

    def text_of(self, event: object) -> str:
        """What there is to tell after an event. Raises AnswerTooLarge, or ProviderBug
        for what is none."""
        if isinstance(event, Delta):
            return self._piece(event.text)
        if isinstance(event, Finish):
            return self._fit(self._half)
        raise ProviderBug

    def _piece(self, text: str) -> str:
        if self._half or _is_cut(text):
            # UTF-16 is what has halves: it joins those that fit, and keeps the others.
            halves = (self._half + text).encode("utf-16-le", "surrogatepass")
            text = halves.decode("utf-16-le", "surrogatepass")
            self._half = text[-1] if _is_cut(text) else ""
            text = text.removesuffix(self._half)
        return self._fit(text)

    def _fit(self, text: str) -> str:
        # PostgreSQL refuses NUL, and UTF-8 lone surrogates.
        if not text.isascii() or "\0" in text:
            text = storable(text)
        self._bytes_left -= len(text) if text.isascii() else len(text.encode())
        if self._bytes_left < 0:
            raise AnswerTooLarge
        return text


def _is_cut(text: str) -> bool:
    """Whether it ends in the first half of a character."""
    return "\ud800" <= text[-1:] <= "\udbff"


def _answer(provider: str, text: str, finish: Finish) -> Answer:
    if not text:
        raise ProviderBadResponse
    usage = Usage(
        _clamped(finish.usage.prompt_tokens), _clamped(finish.usage.completion_tokens)
    )
    model = storable(finish.model)[:_LONGEST_MODEL_NAME]
    reason = finish.reason if finish.reason in FINISH_REASONS else "other"
    return Answer(text, provider, model, reason, usage)


def _clamped(tokens: int | None) -> int | None:
    return None if tokens is None else max(0, min(int(tokens), _MOST_TOKENS))


def _without_words(error: ProviderError) -> ProviderError:
    """The same kind of error, with nothing in it that a backend or a plugin said."""
    kind = next((k for k in PROVIDER_ERRORS if isinstance(error, k)), ProviderBug)
    same, wait = kind(), error.told_wait
    if isinstance(same, Unavailable) and wait is not None:
        same.retry_after_seconds = max(1, min(wait, LONGEST_WAIT_SECONDS))
    if isinstance(error.upstream_status, int):
        same.upstream_status = error.upstream_status
    return same


def _log_failure(backend: Backend, failure: ProviderError, raised: str) -> None:
    fields: dict[str, object] = {"provider": backend.name, "code": failure.code}
    if isinstance(failure, ProviderBug):
        fields["plugin"] = backend.plugin
    fields |= {"raised": raised} if raised else {}
    if failure.upstream_status is not None:
        fields["upstream_status"] = failure.upstream_status
    log.warning("provider.failed", extra=fields)
