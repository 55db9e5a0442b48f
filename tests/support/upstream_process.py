"""The fake model as a process of its own, which can be killed and started again.

Usage: python -m tests.support.upstream_process PORT NAME; its answers begin with NAME.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from core.module import ROOT
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    completion,
    deltas,
    framed,
)


class ModelProcess:
    """One model on a port of its own, that stays the same over its deaths."""

    def __init__(self, name: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._name = name
        self.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.port), self._name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"serving\n"

    def die(self) -> None:
        """Be gone at once, with every connection."""
        with self._process:
            self._process.kill()


@contextmanager
def model_process(name: str) -> Iterator[ModelProcess]:
    model = ModelProcess(name)
    try:
        yield model
    finally:
        model.die()


async def _serve(port: int, name: str) -> None:
    async def answer(wire: Wire, received: Received) -> None:
        if received.head.startswith("GET "):
            await wire.respond({"data": [{"id": "fake"}]})
        elif json.loads(received.body).get("stream"):
            # The first half of an answer; the rest is for ever on its way.
            await wire.send(STREAM_HEAD, *map(framed, deltas(f"{name} says half ")))
            await asyncio.Event().wait()
        else:
            await wire.respond(completion(f"{name} says yes", model=name))

    model = Upstream()
    model.behaviour = answer
    await model.start(port=port)
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
