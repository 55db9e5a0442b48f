"""Our own providers pass the suite that a stranger's has to pass."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import distribution
from typing import Any

from providers.fake import Received
from providers.hooks import GROUP
from providers.testing import (
    KEY,
    ProviderSuite,
    Reply,
    StreamingSuite,
    as_json,
    sse,
)
from tests.support import anthropic


def test_no_provider_of_ours_is_left_out() -> None:
    """A new one that `pyproject.toml` names, and nobody tests, is found here."""
    ours = distribution("vopros").entry_points.select(group=GROUP).names
    tables = [suite().table("http://127.0.0.1", KEY) for suite in _suites()]
    assert {table["type"] for table in tables} == ours


def _suites() -> Iterator[type[ProviderSuite]]:
    """The classes that pytest finds here."""
    for name, found in globals().items():
        if name.startswith("Test") and issubclass(found, ProviderSuite):
            yield found


class TestEcho(ProviderSuite):
    def table(self, url: str, key: str) -> dict[str, Any]:
        return {"type": "echo"}


class TestLocal(ProviderSuite):
    """With the real model in its child: no other backend can be put in its place."""

    def table(self, url: str, key: str) -> dict[str, Any]:
        return {"type": "local", "max_tokens": 8}


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


_SELLER = "/api/v2/oauth"
_NEVER = 4_000_000_000_000  # in milliseconds


class TestGigaChat(TestOpenAI):
    """The answers of `openai`, for a token; a stream's last chunk tells the usage."""

    def table(self, url: str, key: str) -> dict[str, Any]:
        addresses = {"base_url": url, "auth_url": f"{url}{_SELLER}"}
        return {"type": "gigachat", "api_key": key} | addresses

    def aside(self, received: Received) -> bytes | None:
        if not received.head.startswith(f"POST {_SELLER} "):
            return None
        # A token is as secret as the key: whoever finds one has found the other.
        return as_json({"access_token": f"token-{KEY}", "expires_at": _NEVER})

    def stream(self, reply: Reply) -> Iterator[bytes]:
        for piece in reply.pieces:
            yield sse({"choices": [{"index": 0, "delta": {"content": piece}}]})
        choice = {"index": 0, "delta": {"content": ""}, "finish_reason": reply.reason}
        usage = reply.usage and asdict(reply.usage)
        yield sse({"choices": [choice], "usage": usage})
        yield sse("[DONE]")


_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class TestAnthropic(StreamingSuite):
    def table(self, url: str, key: str) -> dict[str, Any]:
        return {"type": "anthropic", "base_url": url, "model": "m", "api_key": key}

    def error(self, words: str) -> bytes:
        return as_json(anthropic.error("api_error", words))

    def whole(self, reply: Reply) -> bytes:
        about = {"model": reply.model, "usage": _tokens(reply)}
        text, reason = anthropic.text(reply.text), _STOP_REASONS[reply.reason]
        return as_json(anthropic.message(text, reason=reason, **about))

    def stream(self, reply: Reply) -> Iterator[bytes]:
        begun = anthropic.started(model=reply.model, usage=_tokens(reply))
        said = anthropic.said(*reply.pieces)
        end = anthropic.ended(_STOP_REASONS[reply.reason], usage=_tokens(reply))
        for event in (begun + said + end).encode().split(b"\n\n")[:-1]:
            yield event + b"\n\n"


def _tokens(reply: Reply) -> dict[str, Any] | None:
    """The usage, in the words of the Messages API."""
    if (usage := reply.usage) is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
    }
