"""Chat completions over plain HTTP: OpenAI, and everything that speaks as it does.

API reference: https://platform.openai.com/docs/api-reference/chat/create
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar

import aiohttp
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator

from providers.hooks import hookimpl
from providers.http import (
    EVENT_STREAM,
    Endpoint,
    HttpOptions,
    is_header_name,
    open_endpoint,
    parse_json,
    read_json,
)
from providers.public import (
    ChatRequest,
    Delta,
    Finish,
    FinishReason,
    ProviderBadResponse,
    ProviderStreamBroken,
    ProviderType,
    Usage,
)
from providers.sse import Event, read_stream

_DONE = "[DONE]"
_AUTHORIZATION = "Authorization"
CHAT_KEYS = frozenset({"messages", "model", "stream"})
"""What `chat_payload` says and no configuration can."""


class OpenAIOptions(HttpOptions):
    """[providers.NAME] with type = "openai"."""

    model: str = Field(min_length=1)
    """The model's name, as the backend calls it."""
    api_key: SecretStr | None = None
    """Sent in `auth_header`; better as a reference, "${OPENAI_API_KEY}"."""
    auth_header: str = _AUTHORIZATION
    """The header that carries the key."""
    auth_scheme: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    """What stands before the key: `Bearer` in Authorization, nothing elsewhere."""
    stream_options: bool = True
    """Ask for the usage at the end of a stream; not every backend knows that."""

    our_keys: ClassVar[frozenset[str]] = CHAT_KEYS | {"stream_options"}

    @property
    def secrets(self) -> list[SecretStr]:
        key = [] if self.api_key is None else [self.api_key]
        return [*key, *super().secrets]

    @field_validator("auth_header")
    @classmethod
    def _check_auth_header(cls, name: str) -> str:
        if not is_header_name(name):
            raise ValueError("must be a header's name that may be set")
        return name

    def authorization(self) -> dict[str, str]:
        """The header that carries the key, if there is one."""
        if self.api_key is None:
            return {}
        scheme = self.auth_scheme
        if scheme is None and self.auth_header.lower() == _AUTHORIZATION.lower():
            scheme = "Bearer"
        key = self.api_key.get_secret_value()
        return {self.auth_header: f"{scheme} {key}" if scheme else key}


class OpenAIChat:
    """One backend that speaks chat completions, over one HTTP session."""

    def __init__(self, options: OpenAIOptions, endpoint: Endpoint) -> None:
        self._options = options
        self._endpoint = endpoint

    async def stream(
        self, request: ChatRequest
    ) -> AsyncGenerator[Delta | Finish, None]:
        """The deltas of a stream, or the whole answer as one, then the Finish."""
        payload = self._payload(request)
        async with self._endpoint.post("/chat/completions", payload) as response:
            events = read_answer(response, self._options.model)
            async with aclosing(events):
                async for event in events:
                    yield event

    async def models(self) -> tuple[str, ...]:
        """What the backend lists as its models."""
        async with self._endpoint.get("/models") as response:
            return read_models(await read_json(response))

    def _payload(self, request: ChatRequest) -> dict[str, Any]:
        payload = chat_payload(request, self._options.model)
        if request.streamed and self._options.stream_options:
            payload["stream_options"] = {"include_usage": True}
        return payload | self._options.body


def chat_payload(request: ChatRequest, model: str) -> dict[str, Any]:
    """The body of a chat completion's request."""
    messages = [{"role": "user", "content": request.content}]
    if request.system_prompt:
        messages.insert(0, {"role": "system", "content": request.system_prompt})
    payload: dict[str, Any] = {"model": model, "messages": messages}
    if request.temperature is not None:
        payload["temperature"] = request.temperature
    if request.max_tokens is not None:
        payload["max_tokens"] = request.max_tokens
    if request.streamed:
        payload["stream"] = True
    return payload


def read_answer(
    response: aiohttp.ClientResponse, model: str
) -> AsyncGenerator[Delta | Finish, None]:
    """Read a chat completion, streamed or whole; `model` if it does not name one."""
    # Not every backend does as it is asked: what came decides, not what was asked for.
    if response.content_type == EVENT_STREAM:
        return read_stream(response.content.iter_any(), _Ending(model))
    return _read_whole(response, model)


async def _read_whole(
    response: aiohttp.ClientResponse, model: str
) -> AsyncGenerator[Delta | Finish, None]:
    completion = await read_json(response)
    try:
        choice, named = completion["choices"][0], completion.get("model")
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        usage = completion.get("usage")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ProviderBadResponse from None
    if not isinstance(text, str):
        raise ProviderBadResponse
    yield Delta(text)
    model = named if named and isinstance(named, str) else model
    yield Finish(model, _reason(reason), _usage(usage))


class _Ending:
    """What a stream has said of its answer's end so far."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._reason: str | None = None
        self._usage = Usage()
        self.is_reached = False

    @property
    def finish(self) -> Finish:
        return Finish(self._model, _reason(self._reason), self._usage)

    def read(self, event: Event) -> Delta | None:
        """Take one event in; the delta in it, if there is one."""
        if event.data == _DONE:
            self.is_reached = True
            return None
        chunk = parse_json(event.data)
        if not isinstance(chunk, dict):
            raise ProviderBadResponse
        if chunk.get("error"):
            raise ProviderStreamBroken
        if model := chunk.get("model"):
            self._model = str(model)
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        # There are none in the chunk that tells the usage.
        if not (choices := chunk.get("choices")):
            return None
        if not isinstance(choices, list):
            raise ProviderBadResponse
        return self._choice(choices[0])

    def _choice(self, choice: Any) -> Delta | None:
        try:
            if choice.get("index"):
                return None  # not the first of several answers
            if reason := choice.get("finish_reason"):
                self._reason, self.is_reached = str(reason), True
            delta = choice.get("delta") or {}
            text = delta.get("content")
            is_thinking = delta.get("reasoning_content") or delta.get("reasoning")
        except AttributeError:
            raise ProviderBadResponse from None
        if text:
            if not isinstance(text, str):
                raise ProviderBadResponse
            return Delta(text)
        return Delta("") if is_thinking else None


_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "filtered",
    "blacklist": "filtered",  # GigaChat's word
}


# What an answer can do without does not spoil it, in whatever form it comes.


def _reason(said: Any) -> FinishReason:
    if not isinstance(said, str) or not said:
        return "stop"
    return _REASONS.get(said, "other")


def _usage(said: Any) -> Usage:
    if not isinstance(said, dict):
        return Usage()
    asked, answered = said.get("prompt_tokens"), said.get("completion_tokens")
    return Usage(_count(asked), _count(answered))


def _count(said: Any) -> int | None:
    # JSON's true is an int as well.
    return said if type(said) is int else None


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


def read_models(listed: Any) -> tuple[str, ...]:
    """The names in a list of models. Raises ProviderBadResponse."""
    try:
        found = _Models.model_validate(listed, strict=True)
    except ValidationError:
        raise ProviderBadResponse from None
    return tuple(model.id for model in found.data)


@asynccontextmanager
async def open_openai(name: str, options: OpenAIOptions) -> AsyncIterator[OpenAIChat]:
    """One session for as long as the provider is open."""
    async with open_endpoint(options, options.authorization()) as endpoint:
        yield OpenAIChat(options, endpoint)


@hookimpl
def vopros_provider() -> ProviderType:
    """Everything that speaks chat completions."""
    return ProviderType("openai", OpenAIOptions, open_openai)
