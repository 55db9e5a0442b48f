"""Chat completions over plain HTTP: OpenAI, and everything that speaks as it does.

API reference: https://platform.openai.com/docs/api-reference/chat/create
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp_socks import ProxyConnector, ProxyError
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator

from core.settings import is_loopback
from providers.hooks import hookimpl
from providers.public import (
    AnswerTooLarge,
    ChatRequest,
    Delta,
    Finish,
    FinishReason,
    ProviderAuth,
    ProviderBadResponse,
    ProviderError,
    ProviderFailed,
    ProviderMisconfigured,
    ProviderOptions,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderTls,
    ProviderType,
    ProviderUnreachable,
    Usage,
)

_LONGEST_BODY = 1024 * 1024
_LONGEST_WAIT = 60
_DEFAULT_WAIT = 5
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


class OpenAIOptions(ProviderOptions):
    """[providers.NAME] with type = "openai"."""

    base_url: str
    model: str = Field(min_length=1)
    api_key: SecretStr | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    proxy: SecretStr | None = None
    max_concurrency: int = Field(2_000, gt=0)
    connect_seconds: float = Field(5, gt=0)
    first_byte_seconds: float = Field(30, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "OpenAIOptions":
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be an http:// or https:// address")
        sends_secret = self.api_key is not None or self.headers
        if parts.scheme == "http" and sends_secret and not is_loopback(parts.hostname):
            raise ValueError("base_url must be https:// where a key is sent")
        if self.proxy is not None:
            proxy = urlsplit(self.proxy.get_secret_value())
            if proxy.scheme not in _PROXY_SCHEMES or not proxy.hostname:
                raise ValueError(f"proxy must be one of {', '.join(_PROXY_SCHEMES)}")
        secrets = [self.api_key, *self.headers.values()]
        if any(s and not _is_header(s.get_secret_value()) for s in secrets):
            raise ValueError("api_key and headers must be printable ASCII")
        return self


def _is_header(text: str) -> bool:
    return text.isascii() and text.isprintable()


class OpenAIChat:
    """One backend that speaks chat completions, over one HTTP session."""

    def __init__(self, options: OpenAIOptions, session: aiohttp.ClientSession) -> None:
        self._options = options
        self._session = session
        self._url = options.base_url.rstrip("/") + "/chat/completions"
        self._proxy = _http_proxy(options)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        """Ask once and yield the whole answer as one delta, then its Finish."""
        with _translated():
            body = await self._post(json.dumps(self._payload(request)).encode())
        completion = _parse(body)
        choice = completion.choices[0]
        yield Delta(choice.message.content)
        yield Finish(
            completion.model or self._options.model,
            _REASONS.get(choice.finish_reason or "stop", "other"),
            completion.usage.counts() if completion.usage else Usage(),
        )

    def _payload(self, request: ChatRequest) -> dict[str, Any]:
        messages = [{"role": "user", "content": request.content}]
        if request.system_prompt:
            messages.insert(0, {"role": "system", "content": request.system_prompt})
        payload: dict[str, Any] = {"model": self._options.model, "messages": messages}
        if request.temperature is not None:
            payload["temperature"] = request.temperature
        if request.max_tokens is not None:
            payload["max_tokens"] = request.max_tokens
        return payload

    async def _post(self, payload: bytes) -> bytes:
        seen = SimpleNamespace(reused=False)
        try:
            return await self._post_once(payload, seen)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The backend had closed a connection that was kept for it, and took no
            # request from it: the one case in which asking again is not a retry.
            if not seen.reused or seen.answered:
                raise
        return await self._post_once(payload, SimpleNamespace(), fresh=True)

    async def _post_once(
        self, payload: bytes, seen: SimpleNamespace, *, fresh: bool = False
    ) -> bytes:
        seen.answered = False
        async with asyncio.timeout(None) as first_byte:
            loop = asyncio.get_running_loop()
            first_byte.reschedule(loop.time() + self._options.first_byte_seconds)
            async with self._session.post(
                self._url,
                data=payload,
                headers={"Connection": "close"} if fresh else None,
                allow_redirects=False,
                proxy=self._proxy,
                trace_request_ctx=seen,
            ) as response:
                seen.answered = True
                first_byte.reschedule(None)
                _check_status(response)
                return await _read_bounded(response)


def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 200:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity" or response.content_type != "application/json":
            raise ProviderBadResponse
        return
    if status == 429:
        seconds = _retry_after(response.headers.get("Retry-After", ""))
        raise ProviderRateLimited(retry_after_seconds=seconds)
    raise _BY_STATUS.get(
        status, ProviderFailed if status >= 400 else ProviderBadResponse
    )


_BY_STATUS: dict[int, type[ProviderError]] = {
    400: ProviderRejected,
    401: ProviderAuth,
    403: ProviderAuth,
    404: ProviderMisconfigured,
    413: ProviderRejected,
    422: ProviderRejected,
    503: ProviderOverloaded,
    529: ProviderOverloaded,
}
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "filtered",
}


def _retry_after(value: str) -> int:
    """Seconds to tell our own client, 1 to 60, whatever the backend said."""
    if value.isascii() and value.isdigit():
        return max(1, min(int(value[:9]), _LONGEST_WAIT))
    return _seconds_until(value)


def _seconds_until(date: str) -> int:
    try:
        moment = parsedate_to_datetime(date)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return _DEFAULT_WAIT
    return max(1, min(int(seconds) + 1, _LONGEST_WAIT))


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _LONGEST_BODY:
            raise AnswerTooLarge
        parts.append(part)
    return b"".join(parts)


class _Message(BaseModel):
    content: str = Field(min_length=1)


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Counts(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def counts(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: _Counts | None = None


def _parse(body: bytes) -> _Completion:
    try:
        # By json, not by pydantic: an escaped lone surrogate is repaired later on.
        return _Completion.model_validate(json.loads(body.decode("utf-8")), strict=True)
    except (ValidationError, ValueError, RecursionError):
        raise ProviderBadResponse from None


@contextmanager
def _translated() -> Iterator[None]:
    """Say aiohttp's errors in ours. Never chained: their text holds the key."""
    try:
        yield
    except ProviderError:
        raise
    except TimeoutError:
        raise ProviderTimeout from None
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError):
        raise ProviderTls from None
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError):
        raise ProviderBadResponse from None
    except (aiohttp.ClientError, OSError, ProxyError):
        raise ProviderUnreachable from None


def _http_proxy(options: OpenAIOptions) -> str | None:
    proxy = options.proxy.get_secret_value() if options.proxy else ""
    return proxy if proxy.startswith("http") else None


def _connector(options: OpenAIOptions) -> aiohttp.TCPConnector:
    shared: dict[str, Any] = {
        "limit": options.max_concurrency,
        "keepalive_timeout": 15,
        "ssl": ssl.create_default_context(),
    }
    proxy = options.proxy.get_secret_value() if options.proxy else ""
    if proxy.startswith("socks"):
        # socks5h leaves the look-up of names to the proxy.
        plain = proxy.replace("socks5h://", "socks5://", 1)
        by_proxy = proxy.startswith("socks5h:")
        return ProxyConnector.from_url(plain, rdns=by_proxy, **shared)
    return aiohttp.TCPConnector(**shared)


def _session(options: OpenAIOptions) -> aiohttp.ClientSession:
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if options.api_key is not None:
        headers["Authorization"] = f"Bearer {options.api_key.get_secret_value()}"
    for name, value in options.headers.items():
        headers[name] = value.get_secret_value()
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=_connector(options),
        headers=headers,
        # Neither the environment's proxies nor the backend's cookies concern us.
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(
            total=None, connect=options.connect_seconds, sock_connect=3
        ),
        trace_configs=[tracing],
    )


async def _note_reuse(session: Any, context: Any, params: Any) -> None:
    context.trace_request_ctx.reused = True


@asynccontextmanager
async def open_openai(name: str, options: OpenAIOptions) -> AsyncIterator[OpenAIChat]:
    """One session for as long as the provider is open."""
    async with _session(options) as session:
        yield OpenAIChat(options, session)


@hookimpl
def vopros_provider() -> ProviderType:
    """Everything that speaks chat completions."""
    return ProviderType("openai", OpenAIOptions, open_openai)
