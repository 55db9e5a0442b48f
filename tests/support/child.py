"""The service as its operator starts it: a process of its own."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from core.module import ROOT

_SWAGGER = re.compile(r"Swagger: (http://\S+)/docs")


class Child:
    """A running `python -m core ... serve`; `output` is what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self._reading = asyncio.create_task(self._read())
        self._served = asyncio.Event()

    async def url(self) -> str:
        """Wait until it serves, and return where."""
        async with asyncio.timeout(30):
            await self._served.wait()
        found = _SWAGGER.search(self.output)
        assert found is not None, self.output
        return found[1]

    async def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        async with asyncio.timeout(30):
            await self._reading
            return await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.output += line.decode()
            if _SWAGGER.search(self.output):
                self._served.set()
        self._served.set()


@asynccontextmanager
async def serving(
    file: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Start the service on a free port; it is killed if it outlives the block."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VOPROS_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "core", "--config", str(file), "serve", "--port", "0"),
        cwd=ROOT,
        env=clean | dict(environ or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    child = Child(process)
    try:
        yield child
    finally:
        if process.returncode is None:
            process.kill()
        await child.ended()
