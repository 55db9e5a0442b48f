"""The API as a client sees it, with a few words for what every test does."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

PASSWORD = "canary-Passw0rd-51c2"
# To be put into input that is refused: it must come back nowhere.
CANARY = "canary-input-93f1d0"


@dataclass(frozen=True)
class Account:
    """Somebody who is signed in."""

    id: int
    username: str
    token: str
    password: str = PASSWORD
    refresh_token: str = ""

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class StreamEvent(NamedTuple):
    """One event of POST /questions/stream."""

    name: str
    data: Any


class Reading:
    """A response of POST /questions/stream: its status at once, its events as told."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self._events

    async def next(self) -> StreamEvent:
        """The next event, signs of life passed over."""
        return await anext(self._events)

    async def rest(self) -> list[StreamEvent]:
        """All events that are still to come."""
        return [event async for event in self._events]

    async def refusal(self) -> httpx.Response:
        """The whole response, of a stream that did not begin."""
        await self.response.aread()
        return self.response

    async def _read(self) -> AsyncGenerator[StreamEvent, None]:
        assert self.response.status_code == 200, (await self.refusal()).text
        kind = self.response.headers["content-type"]
        assert kind == "text/event-stream; charset=utf-8"
        rest = ""
        async for text in self.response.aiter_text():
            *blocks, rest = (rest + text).split("\n\n")
            for block in blocks:
                if not block.startswith(":"):
                    yield _stream_event(block)
        assert rest == ""


def text_of(events: Iterable[StreamEvent]) -> str:
    """What a reader has seen of the answer."""
    return "".join(event.data["text"] for event in events if event.name == "delta")


def events_of(stream: str) -> list[StreamEvent]:
    """The events of a stream that was read to its end."""
    assert stream.endswith("\n\n")
    blocks = stream.removesuffix("\n\n").split("\n\n")
    return [_stream_event(block) for block in blocks if not block.startswith(":")]


def _stream_event(block: str) -> StreamEvent:
    name, data = block.split("\n")
    assert name.startswith("event: ") and data.startswith("data: ")
    return StreamEvent(name.removeprefix("event: "), json.loads(data[6:]))


class Api:
    """A client of one running service."""

    def __init__(self, url: str) -> None:
        self.url = url
        # `verify`: reading the system's certificates takes longer than most tests.
        self.http = httpx.AsyncClient(
            base_url=url,
            timeout=120,
            trust_env=False,
            verify=False,
            # Less than the server's 5: it could close a connection as we take it again.
            limits=httpx.Limits(max_connections=100, keepalive_expiry=2),
        )

    async def close(self) -> None:
        await self.http.aclose()

    async def register(
        self, username: str, password: str = PASSWORD, **more: Any
    ) -> httpx.Response:
        body = {"username": username, "password": password} | more
        return await self.http.post("/auth/register", json=body)

    async def log_in(
        self, username: str, password: str = PASSWORD, **more: Any
    ) -> httpx.Response:
        form = {"grant_type": "password", "username": username, "password": password}
        return await self.http.post("/auth/token", data=form | more)

    async def account(self, username: str | None = None) -> Account:
        """Register somebody new and sign them in."""
        name = username or f"u{uuid.uuid4().hex[:12]}"
        registered = await self.register(name)
        assert registered.status_code == 201, registered.text
        return await self.signed_in(registered.json()["id"], name)

    async def signed_in(
        self, user_id: int, username: str, password: str = PASSWORD
    ) -> Account:
        answer = await self.log_in(username, password)
        assert answer.status_code == 200, answer.text
        given = answer.json()
        token, refresh_token = given["access_token"], given["refresh_token"]
        return Account(user_id, username, token, password, refresh_token)

    async def refresh(self, refresh_token: str) -> httpx.Response:
        body = {"refresh_token": refresh_token}
        return await self.http.post("/auth/refresh", json=body)

    async def ask(self, who: Account, content: str, **more: str) -> httpx.Response:
        """`more` are further headers, a `-` in their names written `_`."""
        return await self.http.post(
            "/questions", json={"content": content}, headers=_headers(who, more)
        )

    async def ask_when_busy(
        self, who: Account, content: str, **more: str
    ) -> httpx.Response:
        """Ask, and once more whenever a 503 says so: a right answer to a storm."""
        while True:
            answer = await self.ask(who, content, **more)
            if answer.status_code != 503 or answer.json()["code"] != "busy":
                return answer
            await asyncio.sleep(int(answer.headers["Retry-After"]))

    @asynccontextmanager
    async def reading(
        self, who: Account, content: str, **more: str
    ) -> AsyncIterator[Reading]:
        """Ask, and read the answer as it comes; hang up when the block is left."""
        body, headers = {"content": content}, _headers(who, more)
        async with self.http.stream(
            "POST", "/questions/stream", json=body, headers=headers
        ) as response:
            yield Reading(response)

    async def read(self, who: Account, content: str) -> list[StreamEvent]:
        """Ask, and read the answer to its end."""
        async with self.reading(who, content) as reading:
            return await reading.rest()

    async def get(self, path: str, who: Account | None = None, **query: Any) -> Any:
        headers = who.auth if who else {}
        return await self.http.get(path, headers=headers, params=query or None)

    async def settled(self, who: Account) -> dict[str, Any]:
        """The newest question, once it is there and pending no more."""
        async with asyncio.timeout(60):
            while True:
                newest = await self.newest(who)
                if newest and newest[0]["status"] != "pending":
                    return newest[0]
                await asyncio.sleep(0.01)

    async def newest(self, who: Account) -> list[dict[str, Any]]:
        answer = await self.get("/questions/me", who)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        return found


def _headers(who: Account, more: dict[str, str]) -> dict[str, str]:
    return who.auth | {name.replace("_", "-"): value for name, value in more.items()}


def assert_problem(
    response: httpx.Response, status: int, code: str | None = None
) -> dict[str, Any]:
    """The response is a complete problem document that repeats no input; returns it."""
    assert response.status_code == status, response.text
    for canary in (PASSWORD, CANARY):
        assert canary not in response.text
        assert canary not in repr(response.headers)
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    needed = {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert needed <= problem.keys()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    if code is not None:
        assert problem["code"] == code
    if status == 422 and problem["code"] == "validation_failed":
        for error in problem["errors"]:
            assert error.keys() == {"loc", "code", "message"}
    return problem
