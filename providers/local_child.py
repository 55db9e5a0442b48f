"""The process that holds the local model: how it is started, and ended."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from providers.public import ProviderNotUsable

_PROGRAM = "providers.local_server"
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_LAST_WORDS_BYTES = 2_048


@dataclass(frozen=True)
class Child:
    """A process that serves the model; `address` is where."""

    address: str
    _process: Process

    async def ended(self) -> str:
        """Wait until it ends by itself; returns how, in a few words."""
        return _how(await self._process.wait())


@asynccontextmanager
async def running_child(*arguments: str, key: str) -> AsyncIterator[Child]:
    """Run `local_server` with `arguments` for as long as the block lasts.

    Raises ProviderNotUsable when it does not start.
    """
    process = await _spawned(sys.executable, "-m", _PROGRAM, *arguments)
    assert process.stderr is not None
    hearing = asyncio.create_task(_last_words(process.stderr))
    try:
        address = await _address(process, key)
        if not address:
            raise ProviderNotUsable(await _cause_of_death(process, hearing))
        yield Child(address, process)
        await _stop(process)
    finally:
        # What is left early has nothing to finish.
        if process.returncode is None:
            process.kill()
            await process.wait()
        await hearing


async def _spawned(*command: str) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            # Ctrl-C is for the server, which lets the questions under way end first.
            start_new_session=True,
        )
    except OSError as exc:
        raise ProviderNotUsable(f"no process can be started: {exc.strerror}") from exc


async def _last_words(stream: asyncio.StreamReader) -> str:
    """The end of what it says. All is read: a full pipe would bring it to a halt."""
    said = b""
    while part := await stream.read(_LAST_WORDS_BYTES):
        said = (said + part)[-_LAST_WORDS_BYTES:]
    return said.decode(errors="replace").strip()


async def _address(process: Process, key: str) -> str:
    """The address it serves on, empty if it ends. Raises ProviderNotUsable."""
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            # By its standard input: arguments and environment are shown to others.
            process.stdin.write(f"{key}\n".encode())
            await process.stdin.drain()
            return (await process.stdout.readline()).decode().strip()
    except TimeoutError:
        raise ProviderNotUsable("the local model did not start in time") from None
    except (BrokenPipeError, ConnectionResetError):
        return ""


async def _cause_of_death(process: Process, hearing: asyncio.Task[str]) -> str:
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            code = await process.wait()
            said = await hearing
    except TimeoutError:
        return "the local model closed its standard output"
    if code == -signal.SIGILL:
        return "this processor cannot run the local model"
    last = said.splitlines()[-1][:200] if said else _how(code)
    return f"the local model could not start: {last}"


def _how(code: int) -> str:
    return f"it ended with code {code}"


async def _stop(process: Process) -> None:
    """Let it end: it does so at the end of its standard input."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        pass  # then it is killed
