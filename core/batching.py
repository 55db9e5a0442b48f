"""Natural batching: work that arrives while a batch is under way shares the next one.

There is no timer, so a lone piece of work waits for nobody; and the busier it gets, the
less each piece costs. Reads and writes alike: what is written is there when its waiter
is told so.
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
    """Does work together: `work` is given many keys and returns what came of them.

    Results go to whoever waits by key, never by position; of equal keys all waiters
    get the same one, so what must happen once for each has keys that differ. A waiter
    joins only a batch that is not sent yet, so what it is told is never older than its
    own request. An error that is nobody's in particular splits a batch in halves, until
    it is the error of one key; being unavailable is everybody's at once.
    """

    def __init__(
        self,
        work: Callable[[Sequence[K]], Awaitable[Mapping[K, R]]],
        *,
        again: Callable[[Sequence[K]], Awaitable[Mapping[K, R]]] | None = None,
        unclaimed: Callable[[K, R], object] | None = None,
        most: int = 1_000,
        longest_queue: int = 20_000,
        seconds: float = 3.0,
        weigh: Callable[[K], int] = lambda key: 0,
        heaviest: int = 1_048_576,
    ) -> None:
        """`most` keys share a batch, which has so many `seconds` for itself.

        Together they `weigh` no more than the `heaviest` batch may, but for one alone:
        what is long takes long, and all would fail together when that is too long.
        A connection that dies may or may not have done its work; so may a deadlock end
        it. `again`, if given, is then tried once, and must know what is done already.
        `unclaimed` is told what came of a key whose waiter was cancelled meanwhile.
        """
        self._do = work
        self._again = again
        self._unclaimed = unclaimed
        self._most = most
        self._longest_queue = longest_queue
        self._seconds = seconds
        self._weigh = weigh
        self._heaviest = heaviest
        self._waiting: list[Waiter[K, R]] = []
        self._worker: asyncio.Task[None] | None = None

    def submit(self, key: K) -> asyncio.Future[R | None]:
        """Put a key in line, without awaiting: no cancellation comes before that.

        The future is of what came of it, None for nothing. It fails with what the work
        raised, or with Busy when it took too long. Cancel it before its batch is sent,
        and nothing is done for it. Raises Busy when too many wait.
        """
        if len(self._waiting) >= self._longest_queue:
            raise Busy
        future: asyncio.Future[R | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return future

    async def find(self, key: K) -> R | None:
        """What comes of the key; raises what `submit` and its future do."""
        return await self.submit(key)

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        if self._worker is not None:
            await asyncio.wait({self._worker})

    async def _work(self) -> None:
        try:
            while self._waiting:
                count = self._next_size()
                batch = self._waiting[:count]
                del self._waiting[:count]
                await self._settle([(k, f) for k, f in batch if not f.done()])
        finally:
            self._worker = None

    def _next_size(self) -> int:
        weight = 0
        for count, (key, _) in enumerate(self._waiting[: self._most]):
            weight += self._weigh(key)
            if count and weight > self._heaviest:
                return count
        return min(len(self._waiting), self._most)

    async def _settle(self, batch: Sequence[Waiter[K, R]]) -> None:
        if not batch:
            return
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._tried(list(dict.fromkeys(k for k, _ in batch)))
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
            left = [key for key, future in batch if not _has(future, found.get(key))]
            if self._unclaimed is not None:
                for key in left:
                    if key in found:
                        self._unclaimed(key, found[key])

    async def _tried(self, keys: Sequence[K]) -> Mapping[K, R]:
        try:
            return await self._do(keys)
        except Unavailable:
            if self._again is None:
                raise
        return await self._again(keys)


def _has(future: asyncio.Future[R | None], result: R | None) -> bool:
    """Give a waiter the result, unless there is none any more."""
    if future.done():
        return False
    future.set_result(result)
    return True


def _fail(batch: Sequence[Waiter[K, R]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            # Each its own: whoever catches one may add to it.
            future.set_exception(_own(error))


def _own(error: Exception) -> Exception:
    if not isinstance(error, DomainError):
        return error
    own = copy.copy(error)
    own.members = dict(error.members)
    own.__cause__ = error.__cause__
    return own
