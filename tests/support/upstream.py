"""A language model on loopback that can also lie, stall, cut the line and send garbage.

It is a raw socket, because an HTTP library would not let it misbehave.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from providers.fake import Behaviour, FakeBackend, Received, Wire
from providers.testing import KEY

__all__ = [
    "KEY",
    "Behaviour",
    "Received",
    "Upstream",
    "Wire",
    "answers",
    "completion",
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
