"""Clients that cost next to nothing: one connection each, one request at a time."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.support.raw import request

PASSWORD = "seven silent typewriters"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    retry_after_seconds: int

    def json(self) -> Any:
        """The body, of an answer that is as it should be."""
        assert self.status in (200, 201), self.body
        return json.loads(self.body)


class Client:
    """One connection, kept open."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, message: bytes) -> Answer:
        """Send a whole request and wait for the whole answer."""
        self._writer.write(message)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await self._reader.readexactly(int(length[1]) if length else 0)
        wait = _RETRY_AFTER.search(head)
        return Answer(int(head[9:12]), body, int(wait[1]) if wait else 0)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


@asynccontextmanager
async def clients(url: str, count: int) -> AsyncIterator[list[Client]]:
    """So many connections."""
    address = urlsplit(url)
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            streams = await asyncio.open_connection(address.hostname, address.port)
            found.append(Client(*streams))
            stack.callback(found[-1].close)
        yield found


def register(name: str, *headers: str) -> bytes:
    """A request that makes an account."""
    body = json.dumps({"username": name, "password": PASSWORD}).encode()
    return _post("/auth/register", "application/json", body, *headers)


def log_in(name: str, *headers: str) -> bytes:
    """A request that opens a session."""
    form = {"grant_type": "password", "username": name, "password": PASSWORD}
    body = urlencode(form).encode()
    return _post("/auth/token", "application/x-www-form-urlencoded", body, *headers)


def log_out(token: str) -> bytes:
    """A request that ends a session."""
    return request("POST", "/auth/logout", bearer(token), "Content-Length: 0")


def bearer(token: str) -> str:
    """The header of whoever has signed in."""
    return f"Authorization: Bearer {token}"


def get(path: str, *headers: str) -> bytes:
    """A request that reads."""
    return request("GET", path, *headers)


def _post(path: str, kind: str, body: bytes, *headers: str) -> bytes:
    about = (f"Content-Type: {kind}", f"Content-Length: {len(body)}")
    return request("POST", path, *about, *headers, body=body)
