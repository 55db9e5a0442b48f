"""A client on a bare socket, who can hang up at any moment and in either way."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass

from tests.support.api import Account, Api


@dataclass(frozen=True)
class Leaver:
    """One request that was sent, and whose answer may never be waited for."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def hang_up(self, *, by_reset: bool = False) -> None:
        """Close with FIN, or with RST as a process does that is killed."""
        if by_reset:
            sock = self.writer.get_extra_info("socket")
            # Without this the kernel ends the connection in order all the same.
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.writer.transport.abort()
        else:
            self.writer.close()


async def asking(
    api: Api, who: Account, content: str, path: str = "/questions", *, room: int = 0
) -> Leaver:
    """Send a question; with `room`, from a socket that takes about so many bytes."""
    bare = socket.socket()
    if room:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    bare.setblocking(False)
    host, port = api.http.base_url.host, api.http.base_url.port
    await asyncio.get_running_loop().sock_connect(bare, (host, port))
    reader, writer = await asyncio.open_connection(sock=bare, limit=room or 65_536)
    body = json.dumps({"content": content}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {who.token}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    return Leaver(reader, writer)
