"""A demonstration without any model: it says so, and repeats the question.

It can also rehearse an outage: stall, trickle and fail, as a real backend might.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import Field, field_validator

from core.layers import nearest
from providers.hooks import hookimpl
from providers.public import (
    PROVIDER_ERRORS,
    ChatRequest,
    Delta,
    Finish,
    ProviderBusy,
    ProviderError,
    ProviderOptions,
    ProviderType,
    ProviderUnavailable,
)

_ANSWER = """\
This is a demonstration: no language model has read your question. To get real \
answers, set OPENAI_API_KEY, or name a provider of yours in `llm.provider`. \
You asked: """
_MODEL = "echo (a demonstration, not a language model)"
_WORD = re.compile(r"\S+\s*")
# Two are not a provider's to report: they mean that it was not asked.
_FAILURES: dict[str, type[ProviderError]] = {
    kind.code: kind
    for kind in PROVIDER_ERRORS
    if kind not in (ProviderBusy, ProviderUnavailable)
}


class EchoOptions(ProviderOptions):
    """[providers.NAME] with type = "echo"."""

    stall_seconds: float = Field(0, ge=0, le=3600)
    """What passes before the first word."""
    trickle_seconds: float = Field(0, ge=0, le=3600)
    """What passes between two words."""
    fail_with: str | None = Field(None, json_schema_extra={"enum": [*_FAILURES]})
    """The `code` of a failure, as problems and attempts name it; None answers."""
    fail_after_words: int = Field(0, ge=0)
    """How many words come before that; an answer of fewer fails at its end."""

    @field_validator("fail_with")
    @classmethod
    def _check_failure(cls, code: str | None) -> str | None:
        if code is not None and code not in _FAILURES:
            raise ValueError(f"there is no such failure ({nearest(code, _FAILURES)})")
        return code


class EchoChat:
    """Always the same answer to the same question, a word at a time."""

    def __init__(self, options: EchoOptions) -> None:
        self._options = options

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        """The words and the Finish, or the failure that is rehearsed."""
        options = self._options
        words = _WORD.findall(_ANSWER + request.content)
        failure = _FAILURES.get(options.fail_with or "")
        pause = options.stall_seconds
        for word in words[: options.fail_after_words] if failure else words:
            await asyncio.sleep(pause)
            yield Delta(word)
            pause = options.trickle_seconds
        if failure is not None:
            await asyncio.sleep(pause)
            raise failure
        yield Finish(_MODEL, "stop")

    async def models(self) -> tuple[str, ...]:
        """Its own name: there is no model."""
        return (_MODEL,)


@asynccontextmanager
async def open_echo(name: str, options: EchoOptions) -> AsyncIterator[EchoChat]:
    """Nothing has to be opened."""
    yield EchoChat(options)


def _demonstrates(options: EchoOptions) -> str:
    return "a demonstration without a language model"


@hookimpl
def vopros_provider() -> ProviderType:
    """The demonstration."""
    return ProviderType("echo", EchoOptions, open_echo, _demonstrates)
