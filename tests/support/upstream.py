"""A language model on loopback that can also lie, stall, cut the line and send garbage.

It is a raw socket, because an HTTP library would not let it misbehave.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from providers.fake import Behaviour, FakeBackend, Received, Wire
from providers.testing import KEY

__all__ = [
    "DONE",
    "KEY",
    "STREAM_HEAD",
    "Behaviour",
    "Received",
    "Upstream",
    "Wire",
    "answers",
    "chunk",
    "completion",
    "deltas",
    "ending",
    "event",
    "framed",
    "streams",
    "upstream_of_its_own",
]


def completion(
    text: str = "An answer.",
    *,
    model: str = "fake-1",
    reason: str = "stop",
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    counts = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": counts if usage is None else usage,
    }


async def answers(wire: Wire, received: Received) -> None:
    """The well-behaved model: its answer names the question."""
    await wire.respond(completion(f"Answer to: {received.question}"))


STREAM_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


def chunk(
    text: str | None = None, *, reason: str | None = None, **more: Any
) -> dict[str, Any]:
    """One chunk of a streamed chat completion; `more` goes into its delta."""
    delta = more if text is None else {"content": text, **more}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "fake-1",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }


def deltas(*texts: str) -> list[bytes]:
    """Events with these pieces of an answer."""
    return [event(chunk(text)) for text in texts]


def ending(reason: str = "stop", usage: Any = None) -> list[bytes]:
    """The well-formed end of a stream: its reason, the usage if any, and the mark."""
    counted = [event(chunk() | {"choices": [], "usage": usage})] if usage else []
    return [event(chunk(reason=reason)), *counted, DONE]


def framed(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def streams(*events: bytes, is_cut: bool = False) -> Behaviour:
    """A body of these events, and its end; if it is cut, the connection's instead."""

    async def behave(wire: Wire, received: Received) -> None:
        await wire.send(STREAM_HEAD, *map(framed, events))
        if is_cut:
            wire.writer.close()
        else:
            await wire.send("0\r\n\r\n")

    return behave


class Upstream(FakeBackend):
    """The fake model's server; `requests` holds what it was asked."""

    def __init__(self) -> None:
        super().__init__(answers)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[asyncio.Event]:
        """Say nothing until the event is set, or the block is left; then answer."""
        release = asyncio.Event()

        async def stall(wire: Wire, received: Received) -> None:
            await release.wait()
            await answers(wire, received)

        async with self.behaving(stall):
            try:
                yield release
            finally:
                release.set()


@asynccontextmanager
async def upstream_of_its_own(
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Upstream]:
    """One more fake model, for as long as the block lasts."""
    fake = Upstream()
    await fake.start(tls)
    try:
        yield fake
    finally:
        await fake.stop()
