"""A model that costs next to nothing: `python -m benchmarks.model` prints where it is.

Below `/instant` it answers at once, below `/slow` after a second. A stream has as many
chunks as `CHUNKS`, one every `CHUNK_SECONDS`, each beginning with `TOKEN`.
"""

import asyncio
import json
import re
from contextlib import suppress
from typing import cast

import uvloop

CHUNKS = 50
CHUNK_SECONDS = 0.02
TOKEN = b"tick"
SLOW_SECONDS = 1.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_IS_STREAMED = re.compile(rb'"stream" *: *true')
_BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "The quick brown fox jumps over the lazy dog. " * 6,
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 60, "total_tokens": 72},
    }
)
_ANSWERED = (
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    f"content-length: {len(_BODY)}\r\n\r\n{_BODY}"
).encode()
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _event(delta: dict[str, str], reason: str | None = None) -> str:
    event = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "fake",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }
    return f"data: {json.dumps(event)}\n\n"


def _framed(data: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data.encode())


_CHUNK = _framed(_event({"content": f"{TOKEN.decode()} fox "}))
_END = _framed(_event({}, "stop") + "data: [DONE]\n\n") + b"0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, is_there, body = self._received.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        if is_there and len(body) >= (int(found[1]) if found else 0):
            self._received = b""
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if _IS_STREAMED.search(body):
            self._transport.write(_STREAM_HEAD)
            self._tick(0, self._loop.time())
        elif head.startswith(b"POST /slow/"):
            self._loop.call_later(SLOW_SECONDS, self._transport.write, _ANSWERED)
        else:
            self._transport.write(_ANSWERED)

    def _tick(self, number: int, since: float) -> None:
        if self._transport.is_closing():
            return
        if number == CHUNKS:
            self._transport.write(_END)
            return
        self._transport.write(_CHUNK)
        due = since + (number + 1) * CHUNK_SECONDS
        self._loop.call_at(due, self._tick, number + 1, since)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(_serve())
