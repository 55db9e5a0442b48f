"""Sber's GigaChat, as far as we speak to it: the seller of tokens, and the API.

Transcribed from the vendor's public reference, not from the live service:
https://developers.sber.ru/docs/ru/gigachat/api/reference/rest/ (post-token, post-chat,
get-models). Both services are one server here, as their paths differ.
"""

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from tests.support.upstream import KEY, Received, Wire, completion

TOKEN = "canary-token-8d20e5"
"""What every token begins with."""
MODEL = "GigaChat-2:2.0.28.2"
LIFETIME_SECONDS = 1800
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "total_tokens": 46,
    "precached_prompt_tokens": 3,
}


class Sber:
    """The well-behaved service, until told otherwise; refuses what it is said to."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.sold: list[str] = []
        self.valid: set[str] = set()
        self.may_sell = asyncio.Event()
        self.may_sell.set()
        self.refusal: str | None = None
        """The status with which a token is refused."""
        self.reason = "stop"
        self.usage: dict[str, Any] | None = USAGE

    async def __call__(self, wire: Wire, received: Received) -> None:
        place = received.head.partition(" HTTP/")[0]
        if place == "POST /api/v2/oauth":
            await self._sell(wire, received)
        elif not self._is_open_to(received):
            body = {"status": 401, "message": "Unauthorized"}
            await wire.respond(body, status="401 Unauthorized")
        elif place == "GET /api/v1/models":
            models = [{"id": name, "object": "model"} for name in ("GigaChat-2", "Max")]
            await wire.respond({"object": "list", "data": models})
        elif place != "POST /api/v1/chat/completions":
            await wire.respond({"status": 404}, status="404 Not Found")
        elif received.json.get("stream"):
            await self._stream(wire, f"Answer to: {received.question}")
        else:
            text = f"Answer to: {received.question}"
            body = completion(text, model=MODEL, reason=self.reason, usage=self.usage)
            await wire.respond(body)

    async def _sell(self, wire: Wire, received: Received) -> None:
        await self.may_sell.wait()
        if self.refusal is not None:
            body = {"code": 6, "message": f"{KEY} {TOKEN}"}
            await wire.respond(body, status=self.refusal)
            return
        is_form = received.header("content-type") == "application/x-www-form-urlencoded"
        is_ours = received.header("authorization") == f"Basic {KEY}"
        scope = parse_qs(received.body.decode()).get("scope")
        request_id = uuid.UUID(received.header("rquid"))
        if not is_form or not is_ours or request_id.version != 4 or not scope:
            body = {"code": 4, "message": "Can't decode 'Authorization' header"}
            await wire.respond(body, status="400 Bad Request")
            return
        token = f"{TOKEN}-{len(self.sold)}"
        self.sold.append(token)
        self.valid.add(token)
        end = int((self._clock() + LIFETIME_SECONDS) * 1000)
        await wire.respond({"access_token": token, "expires_at": end})

    def _is_open_to(self, received: Received) -> bool:
        scheme, _, token = (received.header("authorization") or "").partition(" ")
        return scheme == "Bearer" and token in self.valid

    async def _stream(self, wire: Wire, text: str) -> None:
        middle = len(text) // 2
        last = {"delta": {"content": ""}, "index": 0, "finish_reason": self.reason}
        end: dict[str, Any] = {"choices": [last], "model": MODEL}
        if self.usage is not None:
            end["usage"] = self.usage
        pieces = [_piece(text[:middle]), _piece(text[middle:]), json.dumps(end)]
        body = "".join(f"data: {data}\n\n" for data in [*pieces, "[DONE]"])
        await wire.respond(body, content_type="text/event-stream")


def _piece(text: str) -> str:
    choice = {"delta": {"content": text, "role": "assistant"}, "index": 0}
    return json.dumps(
        {"choices": [choice], "model": MODEL, "object": "chat.completion"}
    )
