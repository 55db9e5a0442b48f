"""A demonstration without any model: it says so, and repeats the question."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from providers.hooks import hookimpl
from providers.public import (
    ChatRequest,
    Delta,
    Finish,
    ProviderOptions,
    ProviderType,
)

_ANSWER = """\
This is a demonstration: no language model has read your question. To get real \
answers, set OPENAI_API_KEY, or name a provider of yours in `llm.provider`. \
You asked: """


class EchoOptions(ProviderOptions):
    """[providers.NAME] with type = "echo"."""


class EchoChat:
    """Answers at once, always the same to the same question."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        """Two deltas, then the Finish."""
        yield Delta(_ANSWER)
        yield Delta(request.content)
        yield Finish("echo (a demonstration, not a language model)", "stop")


@asynccontextmanager
async def open_echo(name: str, options: EchoOptions) -> AsyncIterator[EchoChat]:
    """Nothing has to be opened."""
    yield EchoChat()


def _demonstrates(options: EchoOptions) -> str:
    return "a demonstration without a language model"


@hookimpl
def vopros_provider() -> ProviderType:
    """The demonstration."""
    return ProviderType("echo", EchoOptions, open_echo, _demonstrates)
