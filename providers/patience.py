"""How long to wait for a provider: the beginning, the pauses, the deadline."""

import asyncio
from types import TracebackType

from core.errors import ClientGone
from providers.public import ProviderTimeout


class Patience:
    """Ends the block when the next delta is overdue, or the deadline has come.

    Raises ProviderTimeout then; ClientGone when it was the reader who took so long. A
    TimeoutError that is somebody else's passes. There is one timer, however many
    deltas: moving a real one for each would cost as much as reading them.
    """

    def __init__(self, first_seconds: float, deadline_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._deadline = now + deadline_seconds
        self._due = min(self._deadline, now + first_seconds)
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._armed = self._due
        self._is_reading = False

    async def __aenter__(self) -> "Patience":
        await self._limit.__aenter__()
        self._arm()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._limit.__aexit__(kind, exc, trace)
        except TimeoutError:
            raise (ClientGone if self._is_reading else ProviderTimeout) from None

    def renew(self, seconds: float) -> None:
        """A delta has come: the next one is due in so many seconds."""
        self._is_reading = False
        self._due = min(self._deadline, self._loop.time() + seconds)
        if self._due < self._armed:
            self._arm()

    def of_the_reader(self) -> None:
        """Until `renew` only the deadline counts: a slow reader is no slow provider."""
        self._due, self._is_reading = self._deadline, True

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = self._due
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        if self._loop.time() >= self._due:
            self._limit.reschedule(self._due)
        else:
            self._arm()
