"""A backend on loopback that can also lie, stall, cut the line and send garbage.

It is a raw socket, because an HTTP library would not let it misbehave.
"""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    head: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def question(self) -> str:
        """The last message, where the wire format has a list of messages."""
        content: str = self.json["messages"][-1]["content"]
        return content

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name.lower():
                return value.strip()
        return None


@dataclass
class Wire:
    """One connection from the application, to do anything with."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes | str) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            self.writer.write(data)
        await self.writer.drain()

    async def respond(
        self,
        body: bytes | str | dict[str, Any] = b"",
        *,
        status: str = "200 OK",
        content_type: str = "application/json",
        headers: str = "",
    ) -> None:
        """A well-formed response around whatever body."""
        if isinstance(body, dict):
            body = json.dumps(body)
        data = body.encode() if isinstance(body, str) else body
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(data)}\r\n{headers}\r\n"
        )
        await self.send(head, data)

    async def begin(self, content_type: str) -> None:
        """The head of a response whose body comes in chunks."""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n"
        await self.send(head, "Transfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        """The next chunk, which a client in this loop has read when this returns."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))
        for _ in range(4):
            await asyncio.sleep(0)

    async def end(self) -> None:
        """The end of a body in chunks."""
        await self.send("0\r\n\r\n")

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        # Without this the kernel ends the connection in order all the same.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def closed_by_client(self) -> None:
        """Wait until the application has closed its end."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass  # closed as well


Behaviour = Callable[[Wire, Received], Awaitable[None]]


class FakeBackend:
    """A backend on a free port of loopback; `requests` holds what it was asked."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self.behaviour = behaviour
        self._usual = behaviour
        self._server: asyncio.Server | None = None
        self._scheme = "http"
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    async def start(self, tls: ssl.SSLContext | None = None, *, port: int = 0) -> None:
        self._scheme = "https" if tls else "http"
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", port, ssl=tls
        )

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def behaving(self, behaviour: Behaviour) -> AsyncIterator[None]:
        """Behave so for a while; what was asked before is forgotten."""
        self.requests.clear()
        self.behaviour = behaviour
        try:
            yield
        finally:
            self.behaviour = self._usual

    async def asked(self, times: int = 1) -> None:
        """Wait until this many requests have arrived."""
        async with asyncio.timeout(10):
            while len(self.requests) < times:
                await asyncio.sleep(0.005)

    async def left(self) -> None:
        """Wait until no connection is open."""
        while self._tasks:
            await asyncio.sleep(0.005)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while received := await _read_request(reader):
                self.requests.append(received)
                await self.behaviour(Wire(reader, writer), received)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    received = Received(head.strip(), b"")
    length = int(received.header("content-length") or 0)
    return Received(received.head, await reader.readexactly(length))
