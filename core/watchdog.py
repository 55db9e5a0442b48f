"""Notices that something has held up the event loop, and with it every request."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

_EVERY_SECONDS = 0.25
_TOO_LATE_SECONDS = 0.5


@asynccontextmanager
async def watched_loop(
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[None]:
    """Until the block is left, log whenever this loop was blocked.

    `clock` gives seconds that only grow, as the loop's own does.
    """
    # Monotonic: setting the time of day blocks nothing.
    task = asyncio.create_task(_watch(clock or asyncio.get_running_loop().time, sleep))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch(
    clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
) -> None:
    while True:
        due = clock() + _EVERY_SECONDS
        await sleep(_EVERY_SECONDS)
        late = clock() - due
        if late >= _TOO_LATE_SECONDS:
            log.warning("loop.blocked", extra={"ms": round(late * 1000)})
