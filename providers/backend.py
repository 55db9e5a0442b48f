"""One opened provider, and what stands between it and too many questions."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from providers.breaker import Breaker
from providers.bulkhead import Bulkhead
from providers.public import (
    AnswerTooLarge,
    ChatModel,
    ProviderError,
    ProviderOptions,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 60
_BUDGET_CAP = 10.0
_BUDGET_SHARE = 0.1
# What says nothing against the provider: the question did it.
_BLAMELESS = (AnswerTooLarge, ProviderRejected)
_BLAMELESS_IN_HASTE = (*_BLAMELESS, ProviderTimeout)


@dataclass(frozen=True)
class Timing:
    """Where time and chance come from; a test brings its own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random.random


class RetryBudget:
    """Retries are a tenth of the questions at most, when things go wrong for long."""

    def __init__(self) -> None:
        self._left = _BUDGET_CAP

    def earn(self) -> None:
        """One more question has come."""
        self._left = min(_BUDGET_CAP, self._left + _BUDGET_SHARE)

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Backend:
    """One opened provider, and what stands between it and too many questions."""

    def __init__(
        self,
        name: str,
        model: ChatModel,
        options: ProviderOptions,
        timing: Timing | None = None,
        plugin: str = "",
    ) -> None:
        """`plugin` is what brings it, to be named when that fails."""
        timing = timing or Timing()
        self.name = name
        self.plugin = plugin
        self.model = model
        self.options = options
        self.breaker = Breaker(
            options.breaker_calls, clock=timing.clock, random=timing.random
        )
        self.bulkhead = Bulkhead(options.max_concurrency, queue=options.max_waiting)
        self.budget = RetryBudget()
        self.last_error: str | None = None

    def is_closed_to(self) -> ProviderUnavailable | None:
        """What to tell a question that may not be asked now, None if it may."""
        if not (wait := self.breaker.wait_seconds):
            return None
        whole = min(math.ceil(wait), LONGEST_WAIT_SECONDS)
        return ProviderUnavailable(retry_after_seconds=whole)

    def note(
        self, failure: ProviderError | None, *, is_probe: bool, had_time: bool = True
    ) -> None:
        """Take in how a call ended; None is an answer.

        A timeout says nothing against a provider that was not given its time.
        """
        breaker, before = self.breaker, self.breaker.state
        if failure is None:
            breaker.succeeded(is_probe=is_probe)
        elif isinstance(failure, ProviderRateLimited):
            breaker.cool(failure.told_wait or 0, is_probe=is_probe)
        elif isinstance(failure, _BLAMELESS if had_time else _BLAMELESS_IN_HASTE):
            breaker.abandoned(is_probe=is_probe)
        else:
            breaker.failed(is_probe=is_probe)
        if failure is not None and not isinstance(failure, _BLAMELESS):
            self.last_error = failure.code
        if (after := breaker.state) is not before:
            fields = {"provider": self.name, "before": before, "after": after}
            log.warning("provider.state", extra=fields)
