"""A reverse proxy that serves an application under a path, which it cuts off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


@asynccontextmanager
async def reverse_proxy(target: str, prefix: str) -> AsyncIterator[str]:
    """Pass `prefix` on to `target`, and yield the address with the prefix."""
    host, port = urlsplit(target).hostname, urlsplit(target).port

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await _pass_on(reader, writer, f"{host}:{port}", prefix)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{prefix}"


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    target: str,
    prefix: str,
) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, path, version = first.split(" ")
    if not path.startswith(f"{prefix}/"):
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    headers = dict(line.split(": ", 1) for line in lines)
    lengths = [v for k, v in headers.items() if k.lower() == "content-length"]
    body = await reader.readexactly(int(lengths[0]) if lengths else 0)
    host, _, port = target.partition(":")
    answers, asks = await asyncio.open_connection(host, int(port))
    # One request a connection: the answer ends where the connection does.
    kept = [f"{k}: {v}" for k, v in headers.items() if k.lower() != "connection"]
    start = f"{method} {path.removeprefix(prefix)} {version}"
    asks.write("\r\n".join([start, *kept, "Connection: close", "", ""]).encode())
    asks.write(body)
    while part := await answers.read(65536):
        writer.write(part)
    await writer.drain()
    asks.close()
