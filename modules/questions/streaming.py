"""An answer on its way to somebody who reads it while it is given."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from json.encoder import encode_basestring
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from core.errors import ClientGone, DomainError, Internal
from core.problems import REPLAYED, problem_document
from modules.questions.asking import Asked
from modules.questions.domain import Question, ServerShutdown

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would hold the events back.
    (b"x-accel-buffering", b"no"),
)
_LAST_SECONDS = 30.0
_SIGN_OF_LIFE = b": still thinking\n\n"


class LiveAnswer:
    """`Reader` of one question: holds the pieces back, then sends each as it comes.

    Whoever hears the provider also sends, so a reader who is slow to take the pieces
    slows the provider down: nothing piles up here.
    """

    def __init__(self) -> None:
        self.question_id: int | None = None
        self.has_begun = False
        self._held: list[str] = []
        self._send: Send | None = None
        self._sent_something = False
        self._news = asyncio.Event()

    def accepted(self, question_id: int) -> None:
        self.question_id = question_id
        self.wake()

    async def hear(self, text: str) -> None:
        if self._send is not None:
            self._sent_something = True
            await self._send(_body(_delta(text)))
            return
        self._held.append(text)
        if not self.has_begun:
            self.has_begun = True
            self.wake()

    def wake(self, *_: object) -> None:
        """There may be news for `begun`."""
        self._news.set()

    async def news(self) -> None:
        """Wait until something has happened."""
        await self._news.wait()
        self._news.clear()

    async def open(self, send: Send) -> None:
        """Send what was held back; from now on every piece is sent at once."""
        await send(_body(_event("meta", {"id": self.question_id})))
        while self._held:
            text = "".join(self._held)
            self._held.clear()
            await send(_body(_delta(text)))
        self._send = send

    def was_silent(self) -> bool:
        """Whether nothing was sent since this was asked last."""
        was, self._sent_something = self._sent_something, False
        return not was


async def begun(
    live: LiveAnswer, asking: asyncio.Task[Asked], commit_seconds: float
) -> None:
    """Wait for the first piece, the end, or until the status is held back no longer.

    Raises what `asking` raises if that comes first: it is an ordinary problem still.
    """
    loop = asyncio.get_running_loop()
    asking.add_done_callback(live.wake)
    commit_at = loop.time() + commit_seconds
    timer = loop.call_at(commit_at, live.wake)
    try:
        while not asking.done():
            is_late = loop.time() >= commit_at
            if live.question_id is not None and (live.has_begun or is_late):
                return
            await live.news()
    except asyncio.CancelledError:
        await _interrupt(asking)
    finally:
        timer.cancel()
    if not live.has_begun:
        asking.result()


async def _interrupt(asking: asyncio.Task[Asked]) -> None:
    """Only a server that ends cancels a request; whoever reads is still told."""
    asking.cancel()
    await asyncio.wait({asking})


class EventStream(Response):
    """Server-sent events: `meta`, `delta`s, and `done` or `error` once it is stored."""

    media_type = "text/event-stream"

    def __init__(
        self,
        live: LiveAnswer,
        asking: asyncio.Task[Asked],
        *,
        done: Callable[[Question], bytes],
        silence_seconds: float,
    ) -> None:
        """`done` writes the question as JSON; a silence is broken by a comment."""
        super().__init__()
        self.raw_headers = list(_HEADERS)
        if _is_replayed(asking):
            self.headers.update(REPLAYED)
        self._live = live
        self._asking = asking
        self._done = done
        self._silence = silence_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200}
        await send(start | {"headers": self.raw_headers})
        send = scope["state"]["send_body"]
        # Whether anybody reads is watched by whoever asks: see `Caller.unless_gone`.
        async with _bounded(self._asking):
            try:
                await self._live.open(send)
                await self._keep_alive(send)
            except asyncio.CancelledError:
                if self._asking.done():
                    raise
                await _interrupt(self._asking)
            await self._send_end(send, scope["state"]["request_id"])

    async def _keep_alive(self, send: Send) -> None:
        """Break each long silence, until all is said and stored."""
        while not self._asking.done():
            # Twice as often: what was sent just after one look is found by the next.
            await asyncio.wait({self._asking}, timeout=self._silence / 2)
            if self._live.was_silent() and not self._asking.done():
                await send(_body(_SIGN_OF_LIFE))

    async def _send_end(self, send: Send, request_id: str) -> None:
        try:
            last = _written("done", self._done(self._asking.result().question).decode())
        except ClientGone:
            raise
        except asyncio.CancelledError:
            # Interrupted while it was stored: that still goes on.
            shutdown = ServerShutdown(question_id=self._live.question_id)
            last = _event("error", problem_document(shutdown, request_id))
        except DomainError as error:
            last = _event("error", problem_document(error, request_id))
        except Exception:
            # Told as any other, and then logged by whoever logs the unforeseen.
            last = _event("error", problem_document(Internal(), request_id))
            await send(_body(last, is_last=True))
            raise
        await send(_body(last, is_last=True))


def _is_replayed(asking: asyncio.Task[Asked]) -> bool:
    if not asking.done() or asking.cancelled() or asking.exception() is not None:
        # What came after the first piece is told at the end, however soon that is.
        return False
    return asking.result().is_replayed


@asynccontextmanager
async def _bounded(asking: asyncio.Task[Asked]) -> AsyncIterator[None]:
    """Once all is said and stored, even the slowest reader has had its time."""
    loop = asyncio.get_running_loop()
    is_left = False

    def set_limit(_: object) -> None:
        # A call that is scheduled cannot be taken back: it may come when all is over.
        if not is_left:
            limit.reschedule(loop.time() + _LAST_SECONDS)

    try:
        async with asyncio.timeout(None) as limit:
            asking.add_done_callback(set_limit)
            try:
                yield
            finally:
                is_left = True
                asking.remove_done_callback(set_limit)
    except TimeoutError:
        raise ClientGone from None


def _body(body: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not is_last}


def _delta(text: str) -> bytes:
    # What json.dumps comes to, without making an encoder for every piece.
    return _written("delta", f'{{"text": {encode_basestring(text)}}}')


def _event(name: str, data: dict[str, Any]) -> bytes:
    return _written(name, json.dumps(data, ensure_ascii=False))


def _written(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
