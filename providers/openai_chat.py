"""Chat completions over plain HTTP: OpenAI, and everything that speaks as it does.

API reference: https://platform.openai.com/docs/api-reference/chat/create
"""

import asyncio
import json
import math
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import aiohttp
from aiohttp_socks import (
    ProxyConnectionError,
    ProxyConnector,
    ProxyError,
    ProxyTimeoutError,
)
from multidict import CIMultiDict
from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

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
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+", re.ASCII)
# What says where a request ends, and how its answer may be packed, is not to be set.
_OUR_HEADERS = {"accept-encoding", "connection", "content-length", "transfer-encoding"}


class OpenAIOptions(ProviderOptions):
    """[providers.NAME] with type = "openai"."""

    base_url: str
    model: str = Field(min_length=1)
    api_key: SecretStr | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    proxy: SecretStr | None = None
    max_concurrency: int = Field(2_000, gt=0)
    connect_seconds: float = Field(5, gt=0, le=3600)
    first_byte_seconds: float = Field(30, gt=0, le=3600)

    @model_validator(mode="after")
    def _check(self) -> "OpenAIOptions":
        self._check_headers()
        sends_secret = self.api_key is not None or bool(self.headers)
        url = _address(self.base_url)
        if url is None or url.scheme not in ("http", "https"):
            raise ValueError("base_url must be an http:// or https:// address")
        if url.username is not None or url.query or url.fragment:
            raise ValueError("base_url must not hold a password, a query or a fragment")
        is_near = is_loopback(url.hostname or "")
        if url.scheme == "http" and sends_secret and not is_near:
            raise ValueError("base_url must be https:// where a key is sent")
        if self.proxy is not None:
            proxy = _address(self.proxy.get_secret_value())
            if proxy is None or proxy.scheme not in _PROXY_SCHEMES or not proxy.port:
                known = ", ".join(_PROXY_SCHEMES)
                raise ValueError(f"proxy must be {known}, with a host and a port")
        return self

    def _check_headers(self) -> None:
        secrets = [self.api_key, *self.headers.values()]
        values = [secret.get_secret_value() for secret in secrets if secret is not None]
        if not all(map(_HEADER_VALUE.fullmatch, values)):
            raise ValueError("api_key and headers must be printable ASCII, not empty")
        for name in self.headers:
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _OUR_HEADERS:
                raise ValueError("headers must have names that may be set")


def _address(text: str) -> SplitResult | None:
    """The parts of a URL; None when it has no host, or a port that is none.

    The parser's own words repeat what they are about, a password perhaps.
    """
    try:
        parts = urlsplit(text)
        has_place = parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if has_place else None


class OpenAIChat:
    """One backend that speaks chat completions, over one HTTP session."""

    def __init__(
        self,
        options: OpenAIOptions,
        session: aiohttp.ClientSession,
        trust: ssl.SSLContext,
    ) -> None:
        """`trust` is what the session's connector verifies certificates with."""
        self._options = options
        self._session = session
        self._trust = trust
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
        seen = SimpleNamespace(reused=False, answered=False)
        try:
            return await self._post_once(payload, seen)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The backend gave up a connection that was kept for it without a byte in
            # reply: it almost always had closed it before the question came. Clients
            # of HTTP ask again then (RFC 9112, 9.3.1), and so do we, once.
            if not seen.reused or seen.answered:
                raise
        # Other kept connections may be just as dead. Connections are kept by what they
        # were asked for with: naming the context that is used anyway gives a new one.
        new = {"ssl": self._trust, "headers": {"Connection": "close"}}
        return await self._post_once(payload, seen, **new)

    async def _post_once(
        self, payload: bytes, seen: SimpleNamespace, **connection: Any
    ) -> bytes:
        async with asyncio.timeout(self._options.first_byte_seconds) as first_byte:
            async with self._session.post(
                self._url,
                data=payload,
                allow_redirects=False,
                proxy=self._proxy,
                trace_request_ctx=seen,
                **connection,
            ) as response:
                seen.answered = True
                first_byte.reschedule(None)
                _check_status(response)
                return await _read_bounded(response)


def _check_status(response: aiohttp.ClientResponse) -> None:
    """Raise the error that a status means; for the operator's log it is kept."""
    status = response.status
    if status == 200:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity" or response.content_type != "application/json":
            raise ProviderBadResponse
        return
    otherwise = ProviderFailed if status >= 400 else ProviderBadResponse
    error = _BY_STATUS.get(status, otherwise)()
    if status == 429:
        error.retry_after_seconds = _retry_after(
            response.headers.get("Retry-After", "")
        )
    error.upstream_status = status
    raise error


_BY_STATUS: dict[int, type[ProviderError]] = {
    400: ProviderRejected,
    401: ProviderAuth,
    403: ProviderAuth,
    404: ProviderMisconfigured,
    413: ProviderRejected,
    422: ProviderRejected,
    429: ProviderRateLimited,
    503: ProviderOverloaded,
    529: ProviderOverloaded,
}
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "filtered",
}


def _retry_after(value: str) -> int | None:
    """The seconds that a backend asks us to wait, None when it says nothing usable."""
    if value.isascii() and value.isdigit():
        return int(value[:9])
    try:
        moment = parsedate_to_datetime(value)
        return math.ceil((moment - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _LONGEST_BODY:
            raise AnswerTooLarge
        parts.append(part)
    return b"".join(parts)


T = TypeVar("T")


def _or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        return None


# What an answer can do without does not spoil it, in whatever form it comes.
Lenient = Annotated[T | None, WrapValidator(_or_none)]


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message
    finish_reason: Lenient[str] = None


class _Counts(BaseModel):
    prompt_tokens: Lenient[int] = None
    completion_tokens: Lenient[int] = None

    def counts(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    model: Lenient[str] = None
    usage: Lenient[_Counts] = None


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
    except (TimeoutError, ProxyTimeoutError):
        raise ProviderTimeout from None
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError):
        raise ProviderTls from None
    except aiohttp.ClientHttpProxyError:
        raise ProviderUnreachable from None
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError):
        raise ProviderBadResponse from None
    except ValueError:  # a host that is no name at all: InvalidURL, UnicodeError
        raise ProviderMisconfigured from None
    except (aiohttp.ClientError, OSError, ProxyError, ProxyConnectionError) as exc:
        # Through a SOCKS proxy a bad certificate is known by its cause alone.
        is_tls = isinstance(exc.__cause__, ssl.SSLError)
        raise (ProviderTls if is_tls else ProviderUnreachable) from None


def _http_proxy(options: OpenAIOptions) -> str | None:
    proxy = options.proxy.get_secret_value() if options.proxy else ""
    return proxy if proxy.startswith("http") else None


def _connector(options: OpenAIOptions, trust: ssl.SSLContext) -> aiohttp.TCPConnector:
    shared: dict[str, Any] = {
        "limit": options.max_concurrency,
        "keepalive_timeout": 15,
        "ssl": trust,
    }
    proxy = options.proxy.get_secret_value() if options.proxy else ""
    if proxy.startswith("socks"):
        # socks5h leaves the look-up of names to the proxy.
        plain = proxy.replace("socks5h://", "socks5://", 1)
        by_proxy = proxy.startswith("socks5h:")
        return ProxyConnector.from_url(plain, rdns=by_proxy, **shared)
    return aiohttp.TCPConnector(**shared)


def _session(
    options: OpenAIOptions, connector: aiohttp.TCPConnector
) -> aiohttp.ClientSession:
    # Names that differ in case only are one header, the configured one.
    headers = CIMultiDict(
        {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    )
    if options.api_key is not None:
        headers["Authorization"] = f"Bearer {options.api_key.get_secret_value()}"
    for name, value in options.headers.items():
        headers[name] = value.get_secret_value()
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=connector,
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
    trust = ssl.create_default_context()
    async with _session(options, _connector(options, trust)) as session:
        yield OpenAIChat(options, session, trust)


@hookimpl
def vopros_provider() -> ProviderType:
    """Everything that speaks chat completions."""
    return ProviderType("openai", OpenAIOptions, open_openai)
