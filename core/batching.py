"""Natural batching: work that arrives while a batch is under way shares the next one.

There is no timer, so a lone piece of work waits for nobody; and the busier it gets, the
less each piece costs.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from core.db import Busy
from core.errors import DomainError, Unavailable

K = TypeVar("K")
R = TypeVar("R")


Waiter = tuple[K, asyncio.Future[R | None]]


class Batcher(Generic[K, R]):
    """Looks keys up together: `look_up` is given many and returns what it found.

    Results go to whoever waits by key, never by position. A waiter joins only a batch
    that is not sent yet, so what it is told is never older than its own request. An
    error that is nobody's in particular splits a batch in halves, until it is the error
    of one key; being unavailable is everybody's at once.
    """

    def __init__(
        self,
        look_up: Callable[[Sequence[K]], Awaitable[Mapping[K, R]]],
        *,
        most: int = 1_000,
        longest_queue: int = 20_000,
        seconds: float = 3.0,
    ) -> None:
        """`most` keys share a batch, which has so many `seconds` for itself."""
        self._look_up = look_up
        self._most = most
        self._longest_queue = longest_queue
        self._seconds = seconds
        self._waiting: list[Waiter[K, R]] = []
        self._worker: asyncio.Task[None] | None = None

    async def find(self, key: K) -> R | None:
        """What was found for the key, None for nothing.

        Raises what `look_up` raises; Busy when too many wait, or for too long.
        """
        if len(self._waiting) >= self._longest_queue:
            raise Busy
        future: asyncio.Future[R | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        # Being cancelled here cancels the future, and nothing else.
        return await future

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        if self._worker is not None:
            await asyncio.wait({self._worker})

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[: self._most]
                del self._waiting[: self._most]
                await self._settle([(k, f) for k, f in batch if not f.done()])
        finally:
            self._worker = None

    async def _settle(self, batch: Sequence[Waiter[K, R]]) -> None:
        if not batch:
            return
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._look_up(list(dict.fromkeys(k for k, _ in batch)))
        except TimeoutError:
            _fail(batch, Busy())
        except Unavailable as error:
            _fail(batch, error)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            half = len(batch) // 2
            await self._settle(batch[:half])
            await self._settle(batch[half:])
        else:
            for key, future in batch:
                if not future.done():
                    future.set_result(found.get(key))


def _fail(batch: Sequence[Waiter[K, R]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            # Each its own: whoever catches one may add to it.
            own = copy.copy(error) if isinstance(error, DomainError) else error
            own.__cause__ = error.__cause__
            future.set_exception(own)
