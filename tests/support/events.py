"""Reading a streamed answer as a client does."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.api import Account, Api

Events = AsyncIterator[tuple[str, Any]]


@asynccontextmanager
async def streamed(api: Api, who: Account, content: str) -> AsyncIterator[Events]:
    """Ask, and read the events as they come: their names and what they hold."""
    async with api.http.stream(
        "POST", "/questions/stream", json={"content": content}, headers=who.auth
    ) as response:
        assert response.status_code == 200

        async def events() -> Events:
            name = ""
            async for line in response.aiter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)

        yield events()
