"""How many questions one provider has at a time, and how many may wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from providers.public import ProviderBusy


class Bulkhead:
    """So many places, and a bounded queue for them: a slow provider fills only this."""

    def __init__(self, places: int, *, queue: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._queue = queue
        self._waiting = 0
        self.in_flight = 0

    @asynccontextmanager
    async def place(self, wait_seconds: float) -> AsyncIterator[None]:
        """Hold a place. Raises ProviderBusy when none came free, or the queue is full.

        However the block is left, cancelled too, the place is free again.
        """
        if self._places.locked():
            await self._wait(wait_seconds)
        else:
            await self._places.acquire()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._places.release()

    async def _wait(self, seconds: float) -> None:
        if self._waiting >= self._queue:
            raise ProviderBusy
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
                return
        except TimeoutError:
            pass  # raised below: with no context, as every ProviderError is
        finally:
            self._waiting -= 1
        raise ProviderBusy
