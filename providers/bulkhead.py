"""How many questions one provider has at a time, and how many may wait."""

import asyncio

from providers.public import ProviderBusy


class Bulkhead:
    """So many places, and a bounded queue for them: a slow provider fills only this."""

    def __init__(self, places: int, *, queue: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._most = places
        self._queue = queue
        self._waiting = 0
        self.in_flight = 0

    def place(self, wait_seconds: float) -> "_Place":
        """Hold a place for a block. Raises ProviderBusy when none came free, or the
        queue is full.

        However the block is left, cancelled too, the place is free again.
        """
        return _Place(self, wait_seconds)

    async def take(self, wait_seconds: float) -> None:
        """Wait for a place. Raises ProviderBusy."""
        if self.in_flight < self._most and not self._waiting:
            await self._places.acquire()
        else:
            await self._wait(wait_seconds)
        self.in_flight += 1

    def give_back(self) -> None:
        """Let the next one have the place."""
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


class _Place:
    """A place for the length of a block."""

    def __init__(self, bulkhead: Bulkhead, wait_seconds: float) -> None:
        self._bulkhead = bulkhead
        self._wait_seconds = wait_seconds

    async def __aenter__(self) -> None:
        await self._bulkhead.take(self._wait_seconds)

    async def __aexit__(self, *_: object) -> None:
        self._bulkhead.give_back()
