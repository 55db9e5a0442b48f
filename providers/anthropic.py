"""Anthropic's Messages API over plain HTTP.

API reference: https://platform.claude.com/docs/en/api/messages
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, ClassVar

from pydantic import Field, SecretStr

from providers.hooks import hookimpl
from providers.http import (
    EVENT_STREAM,
    Endpoint,
    HttpOptions,
    open_endpoint,
    parse_json,
    read_json,
)
from providers.openai_chat import read_models
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


class AnthropicOptions(HttpOptions):
    """[providers.NAME] with type = "anthropic"."""

    base_url: str = "https://api.anthropic.com/v1"
    """With the `/v1`: `/messages` and `/models` come after it."""
    model: str = Field(min_length=1)
    """The model's name, as the API calls it."""
    api_key: SecretStr
    """Sent as `x-api-key`; better as a reference, "${ANTHROPIC_API_KEY}"."""
    api_version: str = Field("2023-06-01", pattern=r"^\d{4}-\d{2}-\d{2}$")
    """The version of the API, a date."""
    max_tokens: int = Field(4096, gt=0)
    """The API has no default of its own. `llm.max_tokens` goes first."""

    our_keys: ClassVar[frozenset[str]] = frozenset(
        {"max_tokens", "messages", "model", "stream", "system"}
    )

    @property
    def secrets(self) -> list[SecretStr]:
        return [self.api_key, *super().secrets]

    def authorization(self) -> dict[str, str]:
        """The headers of every request."""
        key = self.api_key.get_secret_value()
        return {"x-api-key": key, "anthropic-version": self.api_version}


class AnthropicChat:
    """One backend that speaks the Messages API, over one HTTP session."""

    def __init__(self, options: AnthropicOptions, endpoint: Endpoint) -> None:
        self._options = options
        self._endpoint = endpoint

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        """The deltas of a stream, or the whole answer as one, then the Finish."""
        ending = _Ending(self._options.model)
        async with self._endpoint.post("/messages", self._payload(request)) as response:
            if response.content_type == EVENT_STREAM:
                parts = response.content.iter_any()
                async with aclosing(read_stream(parts, ending)) as events:
                    async for event in events:
                        yield event
            else:
                yield ending.read_whole(await read_json(response))
                yield ending.finish

    async def models(self) -> tuple[str, ...]:
        """What the backend lists as its models, as many as it tells at once."""
        async with self._endpoint.get("/models?limit=1000") as response:
            return read_models(await read_json(response))

    def _payload(self, request: ChatRequest) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self._options.model,
            "max_tokens": request.max_tokens or self._options.max_tokens,
            "messages": [{"role": "user", "content": request.content}],
        }
        if request.system_prompt:
            payload["system"] = request.system_prompt
        if request.temperature is not None:
            payload["temperature"] = request.temperature
        if request.streamed:
            payload["stream"] = True
        return payload | self._options.body


_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "refusal": "filtered",
}


class _Ending:
    """What an answer has said of its end so far, in a stream or at once."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._reason = "end_turn"
        self._usage = Usage()
        self.is_reached = False

    @property
    def finish(self) -> Finish:
        return Finish(self._model, _REASONS.get(self._reason, "other"), self._usage)

    def read(self, event: Event) -> Delta | None:
        """Take one event in; the delta in it, if there is one."""
        with _understood():
            return self._read(parse_json(event.data))

    def read_whole(self, message: Any) -> Delta:
        """Take in an answer that came at once; returns all of it."""
        with _understood():
            self._note(message)
            pieces = [_piece(block) for block in message["content"]]
        return Delta("".join(piece.text for piece in pieces if piece is not None))

    def _read(self, event: Any) -> Delta | None:
        match event["type"]:
            case "error":
                raise ProviderStreamBroken
            case "message_start":
                self._note(event["message"])
            case "content_block_start":
                return _piece(event["content_block"])
            case "content_block_delta":
                return _piece(event["delta"])
            case "message_delta":
                self._note(event["delta"])
                self._count(event.get("usage"))
            case "message_stop":
                self.is_reached = True
        # A ping is no sign that an answer comes, and new events may be added.
        return None

    def _note(self, said: Any) -> None:
        self._model = str(said.get("model") or self._model)
        self._reason = str(said.get("stop_reason") or self._reason)
        self._count(said.get("usage"))

    def _count(self, usage: Any) -> None:
        """Counts are of all so far: the latest holds, also if it lacks the other."""
        if isinstance(usage, dict):
            self._usage = Usage(
                _number(usage.get("input_tokens"), self._usage.prompt_tokens),
                _number(usage.get("output_tokens"), self._usage.completion_tokens),
            )


def _number(said: Any, otherwise: int | None) -> int | None:
    return said if type(said) is int else otherwise


def _piece(block: Any) -> Delta | None:
    """What is to be read in a block; of a thought, only that there was one."""
    if block["type"] in ("text", "text_delta") and (text := block["text"]):
        if not isinstance(text, str):
            raise ProviderBadResponse
        return Delta(text)
    return Delta("") if block["type"] == "thinking_delta" else None


@contextmanager
def _understood() -> Iterator[None]:
    """Raise ProviderBadResponse for JSON of another form."""
    try:
        yield
    except (AttributeError, KeyError, TypeError):
        raise ProviderBadResponse from None


@asynccontextmanager
async def open_anthropic(
    name: str, options: AnthropicOptions
) -> AsyncIterator[AnthropicChat]:
    """One session for as long as the provider is open."""
    async with open_endpoint(options, options.authorization()) as endpoint:
        yield AnthropicChat(options, endpoint)


@hookimpl
def vopros_provider() -> ProviderType:
    """Everything that speaks the Messages API."""
    return ProviderType("anthropic", AnthropicOptions, open_anthropic)
