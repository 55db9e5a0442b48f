"""Work that a server does again and again, whatever becomes of one time."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from core.errors import DomainError

log = logging.getLogger(__name__)


@asynccontextmanager
async def repeating(
    name: str, work: Callable[[], Awaitable[None]], *, seconds: float
) -> AsyncIterator[None]:
    """Do `work` at once and then about every so many seconds, until the block is left.

    A failure is logged under `name` and followed by the next time. One that repeats for
    the same foreseen reason, such as a database that is not there, is logged once.
    """
    task = asyncio.create_task(_repeat(name, work, seconds))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _repeat(
    name: str, work: Callable[[], Awaitable[None]], seconds: float
) -> None:
    failing = ""
    while True:
        try:
            await work()
            failing = ""
        except DomainError as error:
            if error.code != failing:
                fields = {"work": name, "code": error.code}
                log.warning("periodic.failed", extra=fields)
            failing = error.code
        except Exception as error:
            # Its words may repeat a row.
            fields = {"work": name, "error": type(error).__name__}
            log.error("periodic.failed", extra=fields)
        # Replicas that were started together must not all come at the same moment.
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
