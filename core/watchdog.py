"""Notices that something has held up the event loop, and with it every request."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

_EVERY_SECONDS = 0.25
_TOO_LATE_SECONDS = 0.5


@asynccontextmanager
async def watched_loop() -> AsyncIterator[None]:
    """Until the block is left, tell in the log whenever this loop was blocked."""
    task = asyncio.create_task(_watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch() -> None:
    # Its clock is monotonic: whoever sets the time of day blocks nothing.
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _EVERY_SECONDS
        await asyncio.sleep(_EVERY_SECONDS)
        late = clock() - due
        if late >= _TOO_LATE_SECONDS:
            log.warning("loop.blocked", extra={"ms": round(late * 1000)})
