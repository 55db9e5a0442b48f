"""The API as a client sees it, with a few words for what every test does."""

import uuid
from dataclasses import dataclass
from typing import Any

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

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class Api:
    """A client of one running service."""

    def __init__(self, url: str) -> None:
        self.url = url
        # `verify`: reading the system's certificates takes longer than most tests.
        self.http = httpx.AsyncClient(
            base_url=url, timeout=30, trust_env=False, verify=False
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
        return Account(user_id, username, answer.json()["access_token"], password)

    async def ask(self, who: Account, content: str) -> httpx.Response:
        return await self.http.post(
            "/questions", json={"content": content}, headers=who.auth
        )

    async def get(self, path: str, who: Account | None = None, **query: Any) -> Any:
        headers = who.auth if who else {}
        return await self.http.get(path, headers=headers, params=query or None)

    async def newest(self, who: Account) -> list[dict[str, Any]]:
        answer = await self.get("/questions/me", who)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        return found


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
