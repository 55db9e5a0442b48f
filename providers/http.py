"""One backend over HTTP: its address, its session, and its failures in our words.

What every provider that speaks HTTP shares; the wire formats are files of their own.
"""

import json
import math
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
)
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import SplitResult, urlencode, urlsplit

import aiohttp
from aiohttp_socks import (
    ProxyConnectionError,
    ProxyConnector,
    ProxyError,
    ProxyTimeoutError,
)
from multidict import CIMultiDict
from pydantic import Field, SecretStr, field_validator, model_validator

from core.settings import is_loopback
from providers.public import (
    AnswerTooLarge,
    ProviderAuth,
    ProviderBadResponse,
    ProviderError,
    ProviderFailed,
    ProviderMisconfigured,
    ProviderNotUsable,
    ProviderOptions,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStreamBroken,
    ProviderTimeout,
    ProviderTls,
    ProviderUnreachable,
)

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
_FORM = "application/x-www-form-urlencoded"
_NO_HEADERS: Mapping[str, str] = {}
_LONGEST_BODY = 1024 * 1024
_AT_ONCE_SECONDS = 1.0
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
# What people copy along from the examples of an API.
_OPERATIONS = (
    *("/chat/completions", "/completions", "/messages", "/responses", "/embeddings"),
    "/models",
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+", re.ASCII)
# What says where a request ends, and how its answer may be packed, is not to be set.
_OUR_HEADERS = {"accept-encoding", "connection", "content-length", "transfer-encoding"}


class HttpOptions(ProviderOptions):
    """What a `[providers.NAME]` table holds when its backend speaks HTTP."""

    base_url: str
    """Where the API is; its paths are added to this address."""
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Sent with every request."""
    query: dict[str, SecretStr] = Field(default_factory=dict)
    """Added to the address of every request."""
    body: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the model, sent with every question."""
    proxy: SecretStr | None = None
    """http, https, socks5 or socks5h, for this provider only."""
    ca_file: Path | None = None
    """Certificates in PEM to trust beside the system's."""
    connect_seconds: float = Field(5, gt=0, le=3600)
    """How long connecting may take."""

    @property
    def host_shown(self) -> str | None:
        return urlsplit(self.base_url).netloc

    our_keys: ClassVar[frozenset[str]] = frozenset()
    """What of a question's body is not for `body` to set."""

    @property
    def secrets(self) -> list[SecretStr]:
        """What is sent to the backend that nobody else may see."""
        return [*self.headers.values(), *self.query.values()]

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str) -> str:
        path = urlsplit(checked_address(base_url)).path.rstrip("/").lower()
        for ending in _OPERATIONS:
            if path.endswith(ending):
                raise ValueError(f"must not end in {ending}, which is added to it")
        return base_url

    @field_validator("headers")
    @classmethod
    def _check_names(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if not all(map(is_header_name, headers)):
            raise ValueError("must have names that may be set")
        return headers

    # The key is a field of those whose API has one.
    @field_validator("headers", "query", "api_key", check_fields=False)
    @classmethod
    def _check_values(cls, given: Any) -> Any:
        values = given.values() if isinstance(given, dict) else [given]
        sent = [
            value.get_secret_value() for value in values if isinstance(value, SecretStr)
        ]
        if not all(map(_HEADER_VALUE.fullmatch, sent)):
            raise ValueError("must be printable ASCII, not empty")
        return given

    @field_validator("body")
    @classmethod
    def _check_body(cls, body: dict[str, Any]) -> dict[str, Any]:
        if ours := cls.our_keys & body.keys():
            raise ValueError(f"must not set {', '.join(sorted(ours))}")
        try:
            json.dumps(body, allow_nan=False)
        except (TypeError, ValueError):  # TOML has dates, infinity and nan
            raise ValueError("must hold what JSON can") from None
        return body

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, given: SecretStr | None) -> SecretStr | None:
        proxy = _address(given.get_secret_value()) if given else None
        if given is None or (proxy and proxy.scheme in _PROXY_SCHEMES and proxy.port):
            return given
        known = ", ".join(_PROXY_SCHEMES)
        raise ValueError(f"must be {known}, with a host and a port")

    @field_validator("ca_file")
    @classmethod
    def _check_ca_file(cls, ca_file: Path | None) -> Path | None:
        if ca_file is not None and not ca_file.is_file():
            raise ValueError("there is no such file")
        return ca_file

    @model_validator(mode="after")
    def _check_privacy(self) -> "HttpOptions":
        if self.secrets and not is_private(self.base_url):
            raise ValueError("base_url must be https:// where a key is sent")
        return self


def is_header_name(name: str) -> bool:
    """Whether a header of this name may be set."""
    return bool(_HEADER_NAME.fullmatch(name)) and name.lower() not in _OUR_HEADERS


def checked_address(text: str) -> str:
    """Raises ValueError, in words of our own, where no request may be sent."""
    url = _address(text)
    if url is None or url.scheme not in ("http", "https"):
        raise ValueError("must be an http:// or https:// address")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("must not hold a password, a query or a fragment")
    return text


def is_private(address: str) -> bool:
    """Whether nobody on the way can read what is sent to this `checked_address`."""
    url = urlsplit(address)
    return url.scheme == "https" or is_loopback(url.hostname or "")


def _address(text: str) -> SplitResult | None:
    """The parts of a URL; None when it has no host, or a port that is none.

    The parser's own words repeat what they are about, a password perhaps.
    """
    if " " in text or not text.isprintable():
        return None  # this parser would pass over it in silence, and others not
    try:
        parts = urlsplit(text)
        has_place = parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if has_place else None


_IS_REUSED: ContextVar[bool] = ContextVar("is_reused")
"""Whether this task needed no new connection for what it has sent last."""


class _Connector(aiohttp.TCPConnector):
    """Notes when a connection is new; aiohttp's own tracing costs ten times more."""

    async def _create_connection(self, *arguments: Any, **options: Any) -> Any:
        _IS_REUSED.set(False)
        return await super()._create_connection(*arguments, **options)


class _ProxyConnector(_Connector, ProxyConnector):
    """The same through a SOCKS proxy."""


class Endpoint:
    """A backend's address and the one session that everything goes over."""

    def __init__(
        self,
        options: HttpOptions,
        session: aiohttp.ClientSession,
        trust: ssl.SSLContext,
    ) -> None:
        """`trust` is what the session's connector verifies certificates with."""
        self._session = session
        self._trust = trust
        self._root = options.base_url.rstrip("/")
        self._fixed = {
            "params": {k: v.get_secret_value() for k, v in options.query.items()},
            "proxy": _http_proxy(options),
            "allow_redirects": False,
        }

    def post(
        self,
        path: str,
        payload: Mapping[str, Any],
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send JSON; the response once its status is 200.

        Raises ProviderErrors, also for what goes wrong while the response is read.
        """
        body = json.dumps(payload).encode()
        sent = {"Content-Type": JSON, **headers}
        return self._opened("POST", self._root + path, data=body, headers=sent)

    def post_form(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """As `post`, with a form, and to an address that is not under `base_url`.

        The configured headers and query go there as well.
        """
        body = urlencode(form).encode()
        sent = {"Content-Type": _FORM, **headers}
        return self._opened("POST", url, data=body, headers=sent)

    def get(
        self, path: str, headers: Mapping[str, str] = _NO_HEADERS
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """As `post`, with nothing sent."""
        return self._opened("GET", self._root + path, headers=dict(headers))

    @asynccontextmanager
    async def _opened(
        self, method: str, url: str, *, headers: dict[str, str], **body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        with translated():
            try:
                sent = await self._send(method, url, headers, **body)
            except (aiohttp.InvalidURL, UnicodeError):  # a host that is no name at all
                raise ProviderMisconfigured from None
            async with sent as response:
                _check_status(response)
                yield response

    async def _send(
        self, method: str, url: str, headers: dict[str, str], **body: Any
    ) -> aiohttp.ClientResponse:
        sent_at = time.monotonic()
        shared = {**self._fixed, **body}
        _IS_REUSED.set(True)
        try:
            return await self._session.request(method, url, headers=headers, **shared)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The backend gave up a connection that was kept for it at once, without a
            # byte in reply: it almost always had closed it before the question came.
            # Clients of HTTP ask again then, and so do we, once. Later on it may have
            # thought about it, at a price: asking again is for `failover` to decide.
            if not _IS_REUSED.get() or time.monotonic() - sent_at > _AT_ONCE_SECONDS:
                raise
        # Other kept connections may be just as dead. Connections are kept by what they
        # were asked for with: naming the context that is used anyway gives a new one.
        fresh = headers | {"Connection": "close"}
        return await self._session.request(
            method, url, headers=fresh, ssl=self._trust, **shared
        )


@asynccontextmanager
async def open_endpoint(
    options: HttpOptions, headers: Mapping[str, str] = _NO_HEADERS
) -> AsyncIterator[Endpoint]:
    """One session for as long as the provider is open.

    `headers` go with every request unless the options set them. Raises
    ProviderNotUsable when `ca_file` holds no certificates.
    """
    trust = _trust(options)
    async with _session(options, _connector(options, trust), headers) as session:
        yield Endpoint(options, session, trust)


def _trust(options: HttpOptions) -> ssl.SSLContext:
    trust = ssl.create_default_context()
    if options.ca_file is not None:
        try:
            trust.load_verify_locations(options.ca_file)
        except (OSError, ssl.SSLError):
            raise ProviderNotUsable("ca_file holds no certificates in PEM") from None
    return trust


def _proxy(options: HttpOptions) -> SplitResult | None:
    """The proxy's address; its scheme is in small letters however it was written."""
    return _address(options.proxy.get_secret_value()) if options.proxy else None


def _http_proxy(options: HttpOptions) -> str | None:
    proxy = _proxy(options)
    if proxy is None or proxy.scheme not in ("http", "https"):
        return None
    return proxy.geturl()


def _connector(options: HttpOptions, trust: ssl.SSLContext) -> aiohttp.TCPConnector:
    shared: dict[str, Any] = {
        "limit": options.max_concurrency,
        "keepalive_timeout": 15,
        "ssl": trust,
    }
    proxy = _proxy(options)
    if proxy is not None and proxy.scheme in ("socks5", "socks5h"):
        # socks5h leaves the look-up of names to the proxy.
        plain, by_proxy = proxy._replace(scheme="socks5"), proxy.scheme == "socks5h"
        found: aiohttp.TCPConnector = _ProxyConnector.from_url(
            plain.geturl(), rdns=by_proxy, **shared
        )
        return found
    return _Connector(**shared)


def _session(
    options: HttpOptions,
    connector: aiohttp.TCPConnector,
    headers: Mapping[str, str],
) -> aiohttp.ClientSession:
    # Names that differ in case only are one header, the configured one.
    merged = CIMultiDict({"Accept-Encoding": "identity", **headers})
    for name, value in options.headers.items():
        merged[name] = value.get_secret_value()
    return aiohttp.ClientSession(
        connector=connector,
        headers=merged,
        # Neither the environment's proxies nor the backend's cookies concern us.
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=options.connect_seconds),
    )


def _check_status(response: aiohttp.ClientResponse) -> None:
    """Raise the error that a status means; for the operator's log it is kept."""
    status = response.status
    if status == 200:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ProviderBadResponse
        return
    otherwise = ProviderFailed if status >= 400 else ProviderBadResponse
    error = _BY_STATUS.get(status, otherwise)()
    if isinstance(error, (ProviderRateLimited, ProviderOverloaded)):
        wait = _retry_after(response.headers.get("Retry-After", ""))
        if wait is not None:
            error.retry_after_seconds = wait
    error.upstream_status = status
    raise error


_BY_STATUS: dict[int, type[ProviderError]] = {
    400: ProviderRejected,
    401: ProviderAuth,
    402: ProviderAuth,  # an account without money
    403: ProviderAuth,
    404: ProviderMisconfigured,
    413: ProviderRejected,
    422: ProviderRejected,
    429: ProviderRateLimited,
    503: ProviderOverloaded,
    529: ProviderOverloaded,
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


async def read_json(response: aiohttp.ClientResponse) -> Any:
    """The body, at most 1 MiB of it. Raises ProviderBadResponse or AnswerTooLarge."""
    if response.content_type != JSON:
        raise ProviderBadResponse
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _LONGEST_BODY:
            raise AnswerTooLarge
        parts.append(part)
    return parse_json(b"".join(parts))


_decode = json.JSONDecoder().decode


def parse_json(body: bytes | str) -> Any:
    """Raises ProviderBadResponse for what is no JSON in UTF-8."""
    try:
        # Not by pydantic: an escaped lone surrogate is repaired later on.
        return _decode(body.decode("utf-8") if isinstance(body, bytes) else body)
    except (ValueError, RecursionError):
        raise ProviderBadResponse from None


@contextmanager
def translated() -> Iterator[None]:
    """Say aiohttp's errors in ours, and nothing of what led to them: it holds the key.

    Whoever speaks through an `Endpoint` has this already.
    """
    try:
        try:
            yield
        except (*_FOREIGN, *_FOREIGN_TIMEOUTS) as exc:
            raise _in_our_words(exc) from None
    except ProviderError as error:
        # `from None` hides a context from tracebacks, and keeps it.
        error.__context__ = None
        raise


_FOREIGN = (aiohttp.ClientError, OSError, ProxyError, ProxyConnectionError)
_FOREIGN_TIMEOUTS = (TimeoutError, ProxyTimeoutError)


def _in_our_words(exc: BaseException) -> ProviderError:
    if isinstance(exc, _FOREIGN_TIMEOUTS):
        return ProviderTimeout()
    if isinstance(
        exc, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)
    ):
        return ProviderTls()
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return ProviderUnreachable()
    if isinstance(exc, aiohttp.ClientPayloadError):
        return ProviderStreamBroken()
    if isinstance(exc, aiohttp.ClientResponseError):
        return ProviderBadResponse()
    # Through a SOCKS proxy a bad certificate is known by its cause alone.
    is_tls = isinstance(exc.__cause__, ssl.SSLError)
    return ProviderTls() if is_tls else ProviderUnreachable()
