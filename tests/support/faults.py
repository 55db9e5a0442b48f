"""What a misbehaving model must lead to, whatever it does."""

from typing import Any

import httpx

from tests.support.api import Account, Api, assert_problem
from tests.support.upstream import KEY, Behaviour, Received, Upstream, Wire, completion

SAID = "words-of-the-backend"
"""In everything that a misbehaving model sends, and in nothing that comes out."""


async def assert_failed(
    api: Api, who: Account, answer: httpx.Response, status: int, code: str
) -> dict[str, Any]:
    """The problem and the stored question tell the same, in our own words."""
    problem = assert_problem(answer, status, code)
    assert problem["detail"] == problem["title"]
    assert {attempt["outcome"] for attempt in problem["attempts"]} == {code}
    told = answer.text + repr(answer.headers)
    stored = await api.get(f"/questions/{problem['question_id']}", who)
    assert stored.status_code == 200, stored.text
    question: dict[str, Any] = stored.json()
    assert (question["status"], question["error_code"]) == ("failed", code)
    assert question["attempts"] == problem["attempts"]
    unset = ("answer", "provider", "model", "usage", "finish_reason", "answered_at")
    assert {question[key] for key in unset} == {None}
    for secret in (SAID, KEY):
        assert secret not in told + stored.text
    return problem


async def ask_once(
    api: Api, who: Account, upstream: Upstream, behaviour: Behaviour
) -> httpx.Response:
    """Ask a model that behaves so, over a connection that was not used before."""
    async with upstream.behaving(_answers_and_closes):
        assert (await api.ask(who, "A last one?")).status_code == 201
    async with upstream.behaving(behaviour):
        answer = await api.ask(who, "Will this go wrong?")
        # Each time it was asked counts, and nothing is ever tried more than twice.
        assert len(upstream.requests) == len(answer.json()["attempts"]) <= 2
    return answer


async def _answers_and_closes(wire: Wire, received: Received) -> None:
    await wire.respond(completion(), headers="Connection: close\r\n")
    wire.writer.close()
