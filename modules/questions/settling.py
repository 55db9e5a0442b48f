"""What became of questions, kept until it is stored."""

import asyncio
import logging
import random

from core.batching import Batcher
from core.errors import Internal, Unavailable
from modules.questions.models import Status
from modules.questions.writing import Outcome, Settled

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 5.0


class Settling:
    """Stores outcomes, and tries again for as long as their questions are pending."""

    def __init__(self, batcher: Batcher[Outcome, Settled]) -> None:
        self._batcher = batcher
        self._unstored: set[asyncio.Task[None]] = set()
        self._is_closing = asyncio.Event()

    def submit(
        self, outcome: Outcome, seconds: float
    ) -> asyncio.Future[Settled | None]:
        """Store an outcome; if that fails, again and again for so many seconds.

        Nothing is awaited here, so no cancellation can lose it. The future is of the
        first time: None when the question is pending no more, Unavailable when it is
        not stored yet. It must not be cancelled.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        try:
            future = self._batcher.submit(outcome)
        except Unavailable as error:
            # Too many wait. It is kept as if its turn had come, and failed.
            future = loop.create_future()
            future.set_exception(error)
        future.add_done_callback(lambda done: self._look_at(done, outcome, until))
        return future

    async def drain(self) -> None:
        """Try once more to store what is not stored yet, and then give up."""
        self._is_closing.set()
        while self._unstored:
            await asyncio.wait(set(self._unstored))

    def _look_at(
        self, done: asyncio.Future[Settled | None], outcome: Outcome, until: float
    ) -> None:
        error = done.exception()
        if error is None:
            if done.result() is not None:
                _log_settled(outcome)
            return
        if not isinstance(error, Unavailable):
            # Its answer cannot be stored, whatever the reason; its end can.
            outcome = Outcome(
                outcome.question_id,
                outcome.user_id,
                Status.INTERRUPTED,
                error_code=Internal.code,
            )
        fields = {"question_id": outcome.question_id, "error": type(error).__name__}
        log.error("question.not_stored", extra=fields)
        task = asyncio.create_task(self._keep_trying(outcome, until))
        self._unstored.add(task)
        task.add_done_callback(self._unstored.discard)

    async def _keep_trying(self, outcome: Outcome, until: float) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE_SECONDS
        while loop.time() < until:
            is_last = await self._closing_within(pause * random.uniform(0.8, 1.2))
            try:
                if await self._batcher.find(outcome) is not None:
                    _log_settled(outcome)
                return
            except Unavailable:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except Exception as error:
                fields = {"error": type(error).__name__}
                log.error("question.not_stored", extra=fields)
                break
            if is_last:
                break
        # Whoever reaps what is overdue ends it.
        log.error("question.given_up", extra={"question_id": outcome.question_id})

    async def _closing_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._is_closing.wait()
        except TimeoutError:
            return False
        return True


def _log_settled(outcome: Outcome) -> None:
    fields = {"question_id": outcome.question_id, "status": str(outcome.status)}
    log.info("question.settled", extra=fields)
