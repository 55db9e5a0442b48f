"""A streamed answer as a client reads it."""

import json
from typing import Any

from tests.support.api import Account, Api

Events = list[tuple[str, Any]]


async def ask_and_read(api: Api, who: Account, content: str) -> Events:
    """Ask, read all events to the end, and return the name and data of each."""
    answer = await api.http.post(
        "/questions/stream", json={"content": content}, headers=who.auth
    )
    assert answer.status_code == 200, answer.text
    events = []
    for event in answer.text.strip().split("\n\n"):
        if not event.startswith(":"):
            name, data = event.split("\n")
            told = json.loads(data.removeprefix("data: "))
            events.append((name.removeprefix("event: "), told))
    return events


def text_of(events: Events) -> str:
    """What a reader has seen of the answer."""
    return "".join(data["text"] for name, data in events if name == "delta")
