"""Sber's GigaChat: chat completions, with a token that lasts half an hour.

API reference: https://developers.sber.ru/docs/ru/gigachat/api/reference/rest/
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import aiohttp
from pydantic import Field, SecretStr, field_validator

from providers.hooks import hookimpl
from providers.http import (
    Endpoint,
    HttpOptions,
    checked_address,
    is_private,
    open_endpoint,
    read_json,
    translated,
)
from providers.openai_chat import CHAT_KEYS, chat_payload, read_answer, read_models
from providers.public import (
    ChatRequest,
    Delta,
    Finish,
    ProviderAuth,
    ProviderBadResponse,
    ProviderRejected,
    ProviderType,
)

_PATH = "/chat/completions"
# A token that ends so soon is not used: a question may be on its way for long.
_EARLY_SECONDS = 60.0
# What is less, as a time since 1970, cannot have been meant in milliseconds.
_FIRST_IN_MILLISECONDS = 100_000_000_000
_Ask = Callable[
    [Mapping[str, str]], AbstractAsyncContextManager[aiohttp.ClientResponse]
]


class GigaChatOptions(HttpOptions):
    """[providers.NAME] with type = "gigachat"."""

    base_url: str = "https://gigachat.devices.sberbank.ru/api/v1"
    """Where the API is; its paths are added to this address."""
    model: str = Field("GigaChat-2", min_length=1)
    """The model's name, as the API calls it."""
    api_key: SecretStr
    """The authorization key, as Sber's site shows it: it buys tokens."""
    auth_url: str = "https://ngw.devices.sberbank.ru:9443/api/v2/oauth"
    """Where tokens are sold."""
    auth_seconds: float = Field(10, gt=0, le=3600)
    """How long it may take to get a token."""
    scope: str = Field("GIGACHAT_API_PERS", min_length=1)
    """Whose tokens: of a person, GIGACHAT_API_B2B or GIGACHAT_API_CORP."""

    our_keys: ClassVar[frozenset[str]] = CHAT_KEYS

    @property
    def secrets(self) -> list[SecretStr]:
        return [self.api_key, *super().secrets]

    @field_validator("auth_url")
    @classmethod
    def _check_auth_url(cls, auth_url: str) -> str:
        if not is_private(checked_address(auth_url)):
            raise ValueError("must be https:// where a key is sent")
        return auth_url


@dataclass(frozen=True)
class Token:
    """What opens the API until `expires_at`, in seconds since 1970."""

    value: str = field(repr=False)
    expires_at: float

    @property
    def header(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.value}"}


class Tokens:
    """The token of the moment, fetched once for all who need one.

    `clock` says the time in seconds since 1970, as the token's end is told.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[Token]], clock: Callable[[], float]
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._token: Token | None = None
        self._fetching: asyncio.Task[Token] | None = None

    async def current(self) -> Token:
        """One that lasts a minute or more. Raises what `fetch` raises.

        Whoever comes while one is being fetched waits for that one; whoever comes
        after that has failed tries again.
        """
        if self._token and self._token.expires_at - self._clock() > _EARLY_SECONDS:
            return self._token
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._renew())
            self._fetching.add_done_callback(_heard)
        fetching = self._fetching
        # Not awaited itself: being cancelled while waiting would cancel it for all.
        await asyncio.wait([fetching])
        return fetching.result()

    def forget(self, token: Token) -> None:
        """The API refuses it. A newer one that others have got meanwhile is kept."""
        if self._token is token:
            self._token = None

    async def close(self) -> None:
        """Fetch no more."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _renew(self) -> Token:
        try:
            self._token = await self._fetch()
            return self._token
        finally:
            self._fetching = None


def _heard(fetching: asyncio.Task[Token]) -> None:
    """All who waited may have gone: then nobody else asks how it ended."""
    if not fetching.cancelled():
        fetching.exception()


class GigaChat:
    """One account of GigaChat, over one HTTP session."""

    def __init__(
        self,
        options: GigaChatOptions,
        endpoint: Endpoint,
        clock: Callable[[], float],
    ) -> None:
        self._options = options
        self._endpoint = endpoint
        self.tokens = Tokens(self._buy_token, clock)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        """The deltas of a stream, or the whole answer as one, then the Finish."""
        model = self._options.model
        payload = chat_payload(request, model) | self._options.body
        async with (
            self._authorized(partial(self._endpoint.post, _PATH, payload)) as response,
            aclosing(read_answer(response, model)) as events,
        ):
            async for event in events:
                yield event

    async def models(self) -> tuple[str, ...]:
        """What the backend lists as its models."""
        ask = partial(self._endpoint.get, "/models")
        async with self._authorized(ask) as response:
            return read_models(await read_json(response))

    @asynccontextmanager
    async def _authorized(self, ask: _Ask) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask with a token, and once more with a new one if it is refused."""
        async with AsyncExitStack() as stack:
            token = await self.tokens.current()
            try:
                response = await stack.enter_async_context(ask(token.header))
            except ProviderAuth as refusal:
                if refusal.upstream_status != 401:
                    raise
                self.tokens.forget(token)
                token = await self.tokens.current()
                response = await stack.enter_async_context(ask(token.header))
            yield response

    async def _buy_token(self) -> Token:
        options = self._options
        key, form = options.api_key.get_secret_value(), {"scope": options.scope}
        headers = {"Authorization": f"Basic {key}", "RqUID": str(uuid.uuid4())}
        with translated():
            async with asyncio.timeout(options.auth_seconds):
                try:
                    async with self._endpoint.post_form(
                        options.auth_url, form, headers
                    ) as response:
                        return _token(await read_json(response))
                except ProviderRejected as refusal:
                    # It is the key or the scope that is wrong, and no question.
                    error = ProviderAuth()
                    error.upstream_status = refusal.upstream_status
                    raise error from None


def _token(body: Any) -> Token:
    match body:
        case {"access_token": str(value), "expires_at": int(end)} if _fits(value):
            # Told in milliseconds, though the reference has an example in seconds.
            return Token(value, end if end < _FIRST_IN_MILLISECONDS else end / 1000)
    # Not by pydantic, whose error would hold the token.
    raise ProviderBadResponse


def _fits(value: str) -> bool:
    """Whether it can be sent in a header."""
    return bool(re.fullmatch(r"[\x21-\x7e]+", value))


@asynccontextmanager
async def open_gigachat(
    name: str, options: GigaChatOptions, clock: Callable[[], float] = time.time
) -> AsyncIterator[GigaChat]:
    """One session for as long as the provider is open."""
    async with open_endpoint(options) as endpoint:
        chat = GigaChat(options, endpoint, clock)
        try:
            yield chat
        finally:
            await chat.tokens.close()


@hookimpl
def vopros_provider() -> ProviderType:
    """GigaChat, by its own API."""
    return ProviderType("gigachat", GigaChatOptions, open_gigachat)
