"""A client that is a bare socket: it can send what an HTTP library would refuse to."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """One response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_closed: bool
    """Whether the server closed the connection after it."""

    @property
    def problem(self) -> dict[str, Any]:
        """The complete problem document that this is."""
        assert self.headers["content-type"] == "application/problem+json"
        found: dict[str, Any] = json.loads(self.body)
        needed = {"type", "title", "status", "detail", "instance", "code", "request_id"}
        assert needed <= found.keys()
        assert found["status"] == self.status
        assert found["request_id"] == self.headers["x-request-id"]
        return found

    @property
    def is_refused_by_the_server(self) -> bool:
        """What is no HTTP at all never reaches the application: plain text, closed."""
        kind = self.headers["content-type"].partition(";")[0]
        return self.status == 400 and kind == "text/plain" and self.is_closed


async def exchange(url: str, *parts: bytes) -> Reply:
    """Send the parts one after the other and read one response."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(60):
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await _read(reader, is_head=parts[0].startswith(b"HEAD "))
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, *, is_head: bool) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = 0 if is_head else int(headers["content-length"])
    body = await reader.readexactly(length)
    is_closed = headers.get("connection") == "close" and not await reader.read()
    return Reply(int(status_line.split()[1]), headers, body, is_closed)


def request(
    method: str, target: str, *headers: str | bytes, body: bytes = b"", host: str = ""
) -> bytes:
    """An HTTP/1.1 request; its Host is right unless told otherwise."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or '127.0.0.1'}", *headers]
    encoded = [
        line if isinstance(line, bytes) else line.encode("latin-1") for line in lines
    ]
    return b"\r\n".join([*encoded, b"", body])
