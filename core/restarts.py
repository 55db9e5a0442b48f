"""How long to wait before starting again what was never meant to end."""

import time
from collections.abc import Callable

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0
LASTING_SECONDS = 60.0


class Restarts:
    """The pauses before each restart: none, 1 s, 2 s, and so on up to a minute.

    What has lasted a minute is begun with again: only an end soon after the start makes
    the next pause longer. `clock` gives seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause = 0.0
        self._started_at = float("-inf")

    def started(self) -> None:
        """It is being started now."""
        self._started_at = self._clock()

    def pause_seconds(self) -> float:
        """It has ended: how long to wait before it is started again."""
        if self._clock() - self._started_at >= LASTING_SECONDS:
            self._pause = 0.0
        pause = self._pause
        self._pause = min(max(_FIRST_SECONDS, 2 * pause), _LONGEST_SECONDS)
        return pause
