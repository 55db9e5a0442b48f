"""When a provider is left alone for a while, and when it is tried again."""

from collections import deque
from collections.abc import Callable
from enum import StrEnum

WINDOW_SECONDS = 20.0
_SLICE_SECONDS = 2.0
OPEN_SECONDS = 10.0
_SPREAD = 0.2


class State(StrEnum):
    """Whether a provider is asked at the moment."""

    CLOSED = "closed"
    """It is."""
    OPEN = "open"
    """It failed too often, and is left alone."""
    COOLING = "cooling"
    """It said how long it does not want to be asked."""
    HALF_OPEN = "half_open"
    """One question finds out whether it works again."""


class Breaker:
    """The circuit breaker of one provider, in this process.

    It opens when at least half of `calls` or more calls failed within 20 s, for 10 s
    give or take a fifth; then one probe decides. `clock` gives seconds that only grow,
    `random` a number from 0 to 1; with `calls` 0 it never opens.
    """

    def __init__(
        self,
        calls: int,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._calls = calls
        self._clock = clock
        self._random = random
        self._window = _Window(clock)
        self._open_until: float | None = None
        self._cool_until = float("-inf")
        self._is_probing = False

    @property
    def state(self) -> State:
        if self._cool_until > self._clock():
            return State.COOLING
        if self._open_until is None:
            return State.CLOSED
        is_open = self._open_until > self._clock()
        return State.OPEN if is_open else State.HALF_OPEN

    @property
    def wait_seconds(self) -> float:
        """How long it is still left alone; 0 when a call may go now."""
        left = max(self._cool_until, self._open_until or 0.0) - self._clock()
        if left <= 0 and self._open_until is not None and self._is_probing:
            return 1.0  # the probe's outcome is known soon
        return max(0.0, left)

    def begin(self) -> bool:
        """A call goes. Returns whether it is the probe, as its end must say again."""
        is_probe = self._open_until is not None and not self._is_probing
        self._is_probing = self._is_probing or is_probe
        return is_probe

    def succeeded(self, *, is_probe: bool) -> None:
        """It answered."""
        if is_probe:
            self._open_until, self._is_probing = None, False
            self._window = _Window(self._clock)
        self._window.count(failed=False)

    def failed(self, *, is_probe: bool) -> None:
        """It failed, and that was its own doing."""
        self._window.count(failed=True)
        if is_probe:
            self._is_probing = False
        elif self._open_until is not None or not self._window.is_bad(self._calls):
            return  # what began before it opened says nothing new
        spread = 1 + _SPREAD * (2 * self._random() - 1)
        self._open_until = self._clock() + OPEN_SECONDS * spread

    def abandoned(self, *, is_probe: bool) -> None:
        """The call ended in a way that says nothing of the provider."""
        if is_probe:
            self._is_probing = False

    def cool(self, seconds: float, *, is_probe: bool) -> None:
        """It asked to be left alone for so long, which is no failure."""
        self.abandoned(is_probe=is_probe)
        self._cool_until = max(self._cool_until, self._clock() + seconds)


class _Window:
    """The calls of the last 20 s and how many failed, in slices of 2 s."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slices: deque[list[float]] = deque()  # since when, calls, failures

    def count(self, *, failed: bool) -> None:
        now = self._clock()
        if not self._slices or now - self._slices[-1][0] >= _SLICE_SECONDS:
            self._slices.append([now, 0, 0])
        while now - self._slices[0][0] >= WINDOW_SECONDS:
            self._slices.popleft()
        self._slices[-1][1] += 1
        self._slices[-1][2] += failed

    def is_bad(self, fewest: int) -> bool:
        calls = sum(piece[1] for piece in self._slices)
        failures = sum(piece[2] for piece in self._slices)
        return fewest > 0 and calls >= fewest and failures * 2 >= calls
