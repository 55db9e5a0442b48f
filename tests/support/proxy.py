"""Tiny proxies on loopback, to see what really goes through one."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """What a proxy was asked for, and by whom; everything leads to one port."""

    leads_to: int
    port: int = 0
    targets: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)

    async def speak_http(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode().split("\r\n")[0].split(" ")
        self.targets.append(f"{method} {target}")
        for line in head.decode().split("\r\n"):
            if line.lower().startswith("proxy-authorization: basic "):
                self.credentials.append(base64.b64decode(line[27:]).decode())
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            head = b""
        await self._lead(reader, writer, head)

    async def speak_socks(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        _, methods = await reader.readexactly(2)
        offered = await reader.readexactly(methods)
        if 2 in offered:
            writer.write(b"\x05\x02")
            user = await self._counted(reader, skip=1)
            password = await self._counted(reader)
            self.credentials.append(f"{user}:{password}")
            writer.write(b"\x01\x00")
        else:
            writer.write(b"\x05\x00")
        *_, kind = await reader.readexactly(4)
        if kind == 3:
            host = await self._counted(reader)
        else:
            host = ".".join(str(part) for part in await reader.readexactly(4))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.targets.append(f"{host}:{port}")
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await self._lead(reader, writer, b"")

    async def _counted(self, reader: asyncio.StreamReader, skip: int = 0) -> str:
        await reader.readexactly(skip)
        return (await reader.readexactly((await reader.readexactly(1))[0])).decode()

    async def _lead(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        first: bytes,
    ) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.leads_to)
        back.write(first)
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    finally:
        target.close()


Speaks = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def proxy(leads_to: int, *, socks: bool) -> AsyncIterator[Proxy]:
    """A proxy that sends whatever it is asked for to one port of loopback."""
    found = Proxy(leads_to)
    tasks: set[asyncio.Task[None]] = set()
    speak: Speaks = found.speak_socks if socks else found.speak_http

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await speak(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
