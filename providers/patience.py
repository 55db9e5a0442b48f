"""How long to wait for a provider: the beginning, the pauses, the deadline."""

import asyncio
from types import TracebackType

from core.errors import ClientGone
from providers.public import ProviderTimeout


class Patience:
    """Cancels the block when the next delta is overdue, or the deadline has come.

    Raises ProviderTimeout then; ClientGone when it was the reader who took so long. A
    block that clings on is cancelled once more, some time after the deadline, and then
    TimeoutError is raised: the block is at fault. One that is somebody else's passes.

    There is one timer, however many deltas: moving a real one for each would cost as
    much as reading them.
    """

    __slots__ = (
        "_armed",
        "_cancelled",
        "_cancelled_before",
        "_deadline",
        "_due",
        "_is_reading",
        "_last_chance",
        "_loop",
        "_task",
        "_timer",
    )

    def __init__(
        self, first_seconds: float, deadline_seconds: float, letting_go_seconds: float
    ) -> None:
        """All from now, but for `letting_go_seconds`: those follow the deadline."""
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._deadline = now + deadline_seconds
        self._last_chance = self._deadline + letting_go_seconds
        self._due = min(self._deadline, now + first_seconds)
        self._is_reading = False
        self._cancelled = 0

    def __enter__(self) -> "Patience":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self._arm()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if not self._cancelled:
            return
        for _ in range(self._cancelled):
            others = self._task.uncancel()
        # Somebody else may have cancelled it as well, and is to be heard.
        if others > self._cancelled_before or kind is not asyncio.CancelledError:
            return
        if self._cancelled > 1:
            raise TimeoutError from None
        raise (ClientGone if self._is_reading else ProviderTimeout) from None

    def renew(self, seconds: float) -> None:
        """A delta has come: the next one is due in so many seconds."""
        self._is_reading = False
        self._due = min(self._deadline, self._loop.time() + seconds)
        if self._due < self._armed:
            self._timer.cancel()
            self._arm()

    def of_the_reader(self) -> None:
        """Until `renew` only the deadline counts: a slow reader is no slow provider."""
        self._due, self._is_reading = self._deadline, True

    def _arm(self) -> None:
        self._armed = self._due
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        if self._loop.time() < self._due:
            self._arm()
            return
        self._cancel()
        self._timer = self._loop.call_at(self._last_chance, self._cancel)

    def _cancel(self) -> None:
        self._cancelled += 1
        self._task.cancel()
