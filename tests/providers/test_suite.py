"""Our own providers pass the suite that a stranger's has to pass."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from providers.testing import ProviderSuite, Reply, StreamingSuite, as_json, sse


class TestEcho(ProviderSuite):
    def table(self, url: str, key: str) -> dict[str, Any]:
        return {"type": "echo"}


class TestOpenAI(StreamingSuite):
    def table(self, url: str, key: str) -> dict[str, Any]:
        return {"type": "openai", "base_url": url, "model": "m", "api_key": key}

    def whole(self, reply: Reply) -> bytes:
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": reply.reason}
        usage = reply.usage and asdict(reply.usage)
        return as_json({"model": reply.model, "choices": [choice], "usage": usage})

    def stream(self, reply: Reply) -> Iterator[bytes]:
        for piece in reply.pieces:
            yield sse({"choices": [{"index": 0, "delta": {"content": piece}}]})
        yield sse({"choices": [{"delta": {}, "finish_reason": reply.reason}]})
        if reply.usage:
            yield sse({"choices": [], "usage": asdict(reply.usage)})
        yield sse("[DONE]")
