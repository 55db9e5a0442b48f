"""Anthropic's Messages API, as far as we speak to it.

Transcribed from the vendor's public reference, not from the live service:
https://platform.claude.com/docs/en/api/messages (request, answer, stop reasons),
/docs/en/build-with-claude/streaming (events), /docs/en/api/errors (statuses, bodies),
/docs/en/api/models/list.
"""

from typing import Any

from providers.testing import sse
from tests.support.upstream import KEY, Received, Wire

MODEL = "claude-fake-1"
USAGE = {"input_tokens": 12, "output_tokens": 34}


def message(
    *content: dict[str, Any], reason: str | None = "end_turn", **more: Any
) -> dict[str, Any]:
    """The body of an answer that comes at once."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": list(content),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": USAGE,
    } | more


def text(words: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": words}


def event(kind: str, **data: Any) -> str:
    """One event of a stream, as it goes over the wire."""
    return sse({"type": kind} | data, kind).decode()


def started(**more: Any) -> str:
    """The beginning of every stream: an answer without content, and its tokens."""
    about = {"usage": {"input_tokens": 12, "output_tokens": 1}} | more
    return event("message_start", message=message(reason=None, **about))


def block(number: int, kind: str, *deltas: dict[str, Any]) -> str:
    """One block: its start, its deltas, its end."""
    start = {"type": kind, kind: ""}
    return "".join(
        [
            event("content_block_start", index=number, content_block=start),
            event("ping"),
            *(event("content_block_delta", index=number, delta=d) for d in deltas),
            event("content_block_stop", index=number),
        ]
    )


def said(*pieces: str, number: int = 0) -> str:
    """A block of text in pieces."""
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(number, "text", *deltas)


def ended(reason: str = "end_turn", **more: Any) -> str:
    """The end of every stream: why, how many tokens, and that this was all."""
    usage = {"output_tokens": 34}
    end = {"stop_reason": reason, "stop_sequence": None}
    about = {"delta": end, "usage": usage} | more
    return event("message_delta", **about) + event("message_stop")


def error(kind: str, words: str = "") -> dict[str, Any]:
    """The body of an error."""
    return {
        "type": "error",
        "error": {"type": kind, "message": words},
        "request_id": "req_01",
    }


def failed(kind: str, words: str) -> str:
    """An error within a stream."""
    return sse(error(kind, words), "error").decode()


async def answers(wire: Wire, received: Received) -> None:
    """The well-behaved service: refuses what the reference says it refuses."""
    if received.header("x-api-key") != KEY:
        refusal = error("authentication_error", "invalid x-api-key")
        await wire.respond(refusal, status="401 Unauthorized")
        return
    if received.header("anthropic-version") != "2023-06-01":
        refusal = error("invalid_request_error", "anthropic-version")
        await wire.respond(refusal, status="400 Bad Request")
        return
    if received.head.startswith("GET /v1/models?"):
        data = [{"type": "model", "id": name} for name in (MODEL, "claude-fake-2")]
        await wire.respond({"data": data, "has_more": False})
        return
    asked = received.json
    is_right = received.head.startswith("POST /v1/messages HTTP/1.1")
    if not is_right or not isinstance(asked["max_tokens"], int):
        await wire.respond(error("not_found_error"), status="404 Not Found")
        return
    if asked.get("stream"):
        await streams(
            wire, started() + said("Answer to: ", received.question) + ended()
        )
        return
    await wire.respond(message(text(f"Answer to: {received.question}")))


async def streams(wire: Wire, body: str | bytes) -> None:
    """A response of events."""
    await wire.respond(body, content_type="text/event-stream; charset=utf-8")
