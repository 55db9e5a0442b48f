"""An answer on its way to somebody who reads it while it is given."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from core.errors import ClientGone, DomainError, Internal
from core.problems import problem_document
from modules.questions.service import Question

_MOST_UNREAD = 64 * 1024
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would hold the events back.
    (b"x-accel-buffering", b"no"),
)
_LAST_SECONDS = 30.0
_SIGN_OF_LIFE = b": still thinking\n\n"


class LiveAnswer:
    """The pieces that have come and are not sent yet; `Reader` of one question."""

    def __init__(self) -> None:
        self.question_id: int | None = None
        self.is_full = False
        self._unread: list[str] = []
        self._size = 0
        self._news = asyncio.Event()
        self._read = asyncio.Event()

    def accepted(self, question_id: int) -> None:
        self.question_id = question_id
        self._news.set()

    def hear(self, text: str) -> None:
        self._unread.append(text)
        self._size += len(text)
        self.is_full = self._size > _MOST_UNREAD
        self._news.set()

    async def room(self) -> None:
        self._read.clear()
        await self._read.wait()

    def wake(self, *_: Any) -> None:
        """There may be something to do other than to send a piece."""
        self._news.set()

    def take(self) -> str:
        """What is not sent yet, in one piece."""
        text = "".join(self._unread)
        self._unread.clear()
        self._size, self.is_full = 0, False
        self._read.set()
        return text

    async def news(self) -> None:
        """Wait until a piece has come, or somebody wakes us."""
        await self._news.wait()
        self._news.clear()

    @property
    def has_begun(self) -> bool:
        return bool(self._unread)


async def begun(
    live: LiveAnswer, asking: asyncio.Task[Question], commit_seconds: float
) -> None:
    """Wait for the first piece, the end, or until the status is held back no longer.

    Raises what `asking` raises if that comes first: it is an ordinary problem still.
    """
    loop = asyncio.get_running_loop()
    asking.add_done_callback(live.wake)
    patience_ends = loop.time() + commit_seconds
    timer = loop.call_at(patience_ends, live.wake)
    try:
        while not asking.done():
            is_late = loop.time() >= patience_ends
            if live.question_id is not None and (live.has_begun or is_late):
                return
            await live.news()
    finally:
        timer.cancel()
    if not live.has_begun:
        asking.result()


class EventStream(Response):
    """Server-sent events: `meta`, `delta`s, and `done` or `error` once it is stored."""

    def __init__(
        self,
        live: LiveAnswer,
        asking: asyncio.Task[Question],
        *,
        done: Callable[[Question], str],
        silence_seconds: float,
    ) -> None:
        """`done` writes the question as JSON; a silence is broken by a comment."""
        super().__init__()
        self.raw_headers = list(_HEADERS)
        self._live = live
        self._asking = asking
        self._done = done
        self._silence = silence_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200}
        await send(start | {"headers": self.raw_headers})
        # The watch over who reads is kept by whoever asks: see `Caller.unless_gone`.
        async with _patience(self._asking):
            await self._send_pieces(send)
            await self._send_end(send, scope["state"]["request_id"])

    async def _send_pieces(self, send: Send) -> None:
        live, asking = self._live, self._asking
        await send(_body(_event("meta", {"id": live.question_id})))
        pulse = _Pulse(live, self._silence)
        try:
            while True:
                is_over = asking.done()
                if text := live.take():
                    await send(_body(_event("delta", {"text": text})))
                elif pulse.is_due():
                    await send(_body(_SIGN_OF_LIFE))
                if is_over:
                    return
                await live.news()
        finally:
            pulse.stop()

    async def _send_end(self, send: Send, request_id: str) -> None:
        try:
            last = _written("done", self._done(self._asking.result()))
        except ClientGone:
            raise
        except DomainError as error:
            last = _event("error", problem_document(error, request_id))
        except Exception:
            # Told as any other, and then logged by whoever logs the unforeseen.
            last = _event("error", problem_document(Internal(), request_id))
            await send(_body(last, is_last=True))
            raise
        await send(_body(last, is_last=True))


@asynccontextmanager
async def _patience(asking: asyncio.Task[Question]) -> AsyncIterator[None]:
    """Once all is said and stored, even the slowest reader has had its time."""
    loop = asyncio.get_running_loop()

    def set_limit(_: object) -> None:
        limit.reschedule(loop.time() + _LAST_SECONDS)

    try:
        async with asyncio.timeout(None) as limit:
            asking.add_done_callback(set_limit)
            try:
                yield
            finally:
                asking.remove_done_callback(set_limit)
    except TimeoutError:
        raise ClientGone from None


class _Pulse:
    """Breaks a silence that has become too long. One timer, however many pieces."""

    def __init__(self, live: LiveAnswer, seconds: float) -> None:
        self._live = live
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._beat)

    def is_due(self) -> bool:
        """Whether nothing was sent for too long; something is sent now in any case."""
        since, self._since = self._since, self._loop.time()
        return self._since - since >= self._seconds

    def stop(self) -> None:
        self._timer.cancel()

    def _beat(self) -> None:
        due = self._since + self._seconds
        if self._loop.time() >= due:
            self._live.wake()
            due = self._loop.time() + self._seconds
        self._timer = self._loop.call_at(due, self._beat)


def _body(body: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not is_last}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return _written(name, json.dumps(data, ensure_ascii=False))


def _written(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
