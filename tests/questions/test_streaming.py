"""A question whose answer is read as it comes: what a reader sees, and what is kept."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from providers.failover import FailoverChat
from tests.conftest import Databases, served
from tests.support.api import Account, Api, assert_problem, events_of
from tests.support.config import write_config
from tests.support.leaver import asking
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    deltas,
    ending,
    framed,
    streams,
)


class Told:
    """A model that says one word each time it is told to."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[str | None] = asyncio.Queue()
        self.was_left = asyncio.Event()

    def says(self, *words: str) -> None:
        for word in words:
            self._words.put_nowait(word)

    def ends(self) -> None:
        self._words.put_nowait(None)

    async def __call__(self, wire: Wire, received: Received) -> None:
        left = asyncio.create_task(self._watch(wire))
        try:
            await wire.send(STREAM_HEAD)
            while (word := await self._words.get()) is not None:
                await wire.send(*map(framed, deltas(word)))
            await wire.send(*map(framed, ending()), "0\r\n\r\n")
        finally:
            left.cancel()

    async def _watch(self, wire: Wire) -> None:
        await wire.closed_by_client()
        self.was_left.set()


async def test_an_answer_is_read_word_by_word_and_stored_once(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    model = Told()
    async with upstream.behaving(model):
        model.says("Paris")
        async with api.reading(ada, "Which city?") as reading:
            assert reading.response.headers["cache-control"] == "no-store"
            assert reading.response.headers["x-accel-buffering"] == "no"
            meta = await reading.next()
            first = await reading.next()
            # The first word is here, and the second not yet said.
            (pending,) = await api.newest(ada)
            assert (pending["status"], pending["answer"]) == ("pending", None)
            model.says(', "of course"\n', "\u2028\u00e9")
            model.ends()
            *pieces, done = await reading.rest()
    assert (meta.name, meta.data) == ("meta", {"id": pending["id"]})
    assert (first.name, first.data) == ("delta", {"text": "Paris"})
    assert {piece.name for piece in pieces} == {"delta"}
    told = "".join(piece.data["text"] for piece in (first, *pieces))
    assert told == 'Paris, "of course"\n\u2028\u00e9'
    assert done.name == "done"
    assert done.data == (await api.get(f"/questions/{pending['id']}", ada)).json()
    assert (done.data["status"], done.data["answer"]) == ("answered", told)
    assert [a["outcome"] for a in done.data["attempts"]] == ["answered"]
    assert upstream.requests[-1].json["stream"] is True


async def test_a_question_that_is_not_valid_is_an_ordinary_problem(
    api: Api, ada: Account
) -> None:
    for content, code in (("  ", "blank"), ("x" * 4_001, "too_long")):
        body = {"content": content}
        answer = await api.http.post("/questions/stream", json=body, headers=ada.auth)
        problem = assert_problem(answer, 422, "validation_failed")
        assert problem["errors"][0]["code"] == code
    answer = await api.http.post("/questions/stream", json={"content": "Who am I?"})
    assert_problem(answer, 401, "token_missing")
    assert await api.newest(ada) == []


async def test_Q06_a_stream_is_asked_for_in_one_way_and_never_resumed(
    api: Api, ada: Account
) -> None:
    for path in ("/questions", "/questions/stream"):
        for junk in (True, "yes", "", 1):
            body = {"content": "Why?", "stream": junk}
            answer = await api.http.post(path, json=body, headers=ada.auth)
            (error,) = assert_problem(answer, 422)["errors"]
            assert (error["loc"], error["code"]) == (
                ["body", "stream"],
                "unknown_field",
            )
    for method in ("HEAD", "GET"):
        answer = await api.http.request(method, "/questions/stream", headers=ada.auth)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert await api.newest(ada) == []
    first = await api.read(ada, "Why?")
    headers = ada.auth | {"Last-Event-ID": str(first[-1].data["id"])}
    again = await api.http.post(
        "/questions/stream", json={"content": "Why?"}, headers=headers
    )
    meta, *_ = events_of(again.text)
    assert meta.data["id"] > first[-1].data["id"]
    document = (await api.get("/openapi.json")).json()
    told = document["paths"]["/questions/stream"]["post"]["description"]
    assert "cannot be resumed" in " ".join(told.split())


@pytest.fixture
async def impatient(
    tmp_path: Path, databases: Databases, database_kind: str, upstream: Upstream
) -> Any:
    """A service that commits itself at once, and breaks silences soon."""
    file = write_config(
        tmp_path / "app.toml",
        await databases.migrated(database_kind),
        upstream.base_url,
        questions="stream_commit_seconds = 0\nstream_silence_seconds = 0.05",
    )
    async with served(file) as (_, api):
        yield api


async def test_a_silence_is_broken_by_comments(
    impatient: Api, upstream: Upstream
) -> None:
    ada, model = await impatient.account(), Told()
    request = impatient.http.stream(
        "POST", "/questions/stream", json={"content": "Long?"}, headers=ada.auth
    )
    async with upstream.behaving(model), request as response:
        lines = response.aiter_lines()
        seen = [await anext(lines) for _ in range(9)]
        model.says("At last.")
        model.ends()
        rest = [line async for line in lines]
    question = (await impatient.newest(ada))[0]
    data = json.dumps({"id": question["id"]})
    assert seen[:3] == ["event: meta", f"data: {data}", ""]
    assert seen[3:] == [": still thinking", ""] * 3
    assert rest[-3] == "event: done"


@pytest.mark.slow
async def test_a_silence_after_a_word_is_no_longer_than_any_other(
    tmp_path: Path, databases: Databases, upstream: Upstream
) -> None:
    """Proxies count from the last byte, whatever it was."""
    file = write_config(
        tmp_path / "app.toml",
        await databases.migrated("sqlite"),
        upstream.base_url,
        questions="stream_silence_seconds = 0.6",
    )
    model, clock = Told(), asyncio.get_running_loop().time
    async with served(file) as (_, api), upstream.behaving(model):
        ada = await api.account()
        model.says("Well, ")
        async with api.http.stream(
            "POST", "/questions/stream", json={"content": "Long?"}, headers=ada.auth
        ) as response:
            lines = response.aiter_lines()
            while "Well" not in await anext(lines):
                pass
            model.says("er, ")
            while "er" not in await anext(lines):
                pass
            last = clock()
            assert [await anext(lines) for _ in range(2)] == ["", ": still thinking"]
            assert clock() - last < 30
            model.ends()


async def test_once_committed_a_failure_is_an_event(
    impatient: Api, upstream: Upstream
) -> None:
    """What would have been the status is told in the problem."""
    ada = await impatient.account()
    refused = asyncio.Event()

    async def refuse_later(wire: Wire, received: Received) -> None:
        await refused.wait()
        await wire.respond(status="401 Unauthorized")

    reads = impatient.reading(ada, "May I?")
    async with upstream.behaving(refuse_later), reads as reading:
        meta = await reading.next()
        refused.set()
        (error,) = await reading.rest()
    assert error.name == "error"
    assert (error.data["status"], error.data["code"]) == (502, "provider_auth")
    assert error.data["question_id"] == meta.data["id"]
    assert error.data["request_id"] == reading.response.headers["x-request-id"]
    assert (await impatient.settled(ada))["error_code"] == "provider_auth"


@pytest.mark.slow
async def test_U37_a_reader_who_does_not_read_slows_the_model_down(
    tmp_path: Path, databases: Databases, database_kind: str, upstream: Upstream
) -> None:
    """Nothing piles up here, and the deadline still ends it."""
    file = write_config(
        tmp_path / "app.toml",
        await databases.migrated(database_kind),
        upstream.base_url,
        llm="deadline_seconds = 2\nlongest_answer_bytes = 1048576",
    )

    async def say_much(wire: Wire, received: Received) -> None:
        await wire.send(STREAM_HEAD)
        for _ in range(1_000):
            # Six bytes a character on the wire: more than the sockets can hold.
            await wire.send(*map(framed, deltas("\x01" * 1_000)))

    async with served(file) as (found, api), upstream.behaving(say_much):
        ada = await api.account()
        client = await asking(
            api, ada, "Tell me everything.", "/questions/stream", room=4_096
        )
        question = await api.settled(ada)
        # What fits into the socket, and a long way from all there was to read.
        assert 0 < len(question["answer"]) < 900_000
        assert (question["status"], question["error_code"]) == (
            "interrupted",
            "client_gone",
        )
        (backend,) = found.service(FailoverChat).backends
        assert (backend.bulkhead.in_flight, backend.last_error) == (0, None)
        client.hang_up(by_reset=True)


async def test_a_plain_question_is_not_streamed_from_the_model(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    upstream.requests.clear()
    assert (await api.ask(ada, "All at once?")).status_code == 201
    assert "stream" not in upstream.requests[-1].json


@pytest.mark.slow
async def test_thirty_readers_at_once_each_read_their_own_answer(
    api: Api, upstream: Upstream
) -> None:
    async def name_the_question(wire: Wire, received: Received) -> None:
        words = [f"{word} " for word in received.question.split()]
        await streams(*deltas(*words), *ending())(wire, received)

    people = [await api.account() for _ in range(30)]
    async with upstream.behaving(name_the_question):
        told = await asyncio.gather(
            *(api.read(who, f"What does {who.username} want?") for who in people)
        )
    for who, events in zip(people, told, strict=True):
        text_read = "".join(e.data["text"] for e in events if e.name == "delta")
        assert text_read == f"What does {who.username} want? "
        assert events[-1].data["user_id"] == who.id
        assert await api.newest(who) == [events[-1].data]
