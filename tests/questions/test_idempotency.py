"""Idempotency-Key: the same request sent again is not asked again, but told again."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from core.db import Database, db_after
from core.testing import Running
from modules.questions.models import QuestionRow
from modules.questions.upkeep import Upkeep
from tests.support.api import Account, Api, assert_problem, text_of
from tests.support.raw import exchange, request
from tests.support.upstream import (
    Received,
    Upstream,
    Wire,
    answers,
    deltas,
    ending,
    streams,
)

Change = Callable[..., Awaitable[None]]
BOTH = ("/questions", "/questions/stream")
PARIS = streams(*deltas("Par", "is."), *ending(usage={"prompt_tokens": 3}))


def new_key() -> str:
    return str(uuid.uuid4())


async def post(
    api: Api, path: str, who: Account, key: str, content: str = "Which city?"
) -> httpx.Response:
    headers = who.auth | {"Idempotency-Key": key}
    return await api.http.post(path, json={"content": content}, headers=headers)


def is_replayed(answer: httpx.Response) -> bool:
    told: str | None = answer.headers.get("idempotency-replayed")
    assert told in (None, "true")
    return told == "true"


def without_request(problem: dict[str, Any]) -> dict[str, Any]:
    """What of a problem is not of one request only."""
    return {k: v for k, v in problem.items() if k not in ("request_id", "instance")}


async def refuses(wire: Wire, received: Received) -> None:
    await wire.respond(status="500 Internal Server Error")


async def rejects(wire: Wire, received: Received) -> None:
    await wire.respond(status="400 Bad Request")


async def test_F30_an_answer_is_told_again_and_not_asked_again(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    key = new_key()
    async with upstream.behaving(answers):
        first = await post(api, "/questions", ada, key)
        again = [await post(api, "/questions", ada, key) for _ in range(3)]
        assert len(upstream.requests) == 1
    assert (first.status_code, is_replayed(first)) == (201, False)
    for answer in again:
        assert (answer.status_code, is_replayed(answer)) == (201, True)
        assert answer.json() == first.json()
    assert await api.newest(ada) == [first.json()]


async def test_F30_a_stream_is_told_again_in_one_piece(
    api: Api, ada: Account, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key()
    async with upstream.behaving(PARIS):
        async with api.reading(ada, "Which city?", Idempotency_Key=key) as reading:
            assert not is_replayed(reading.response)
            first = await reading.rest()
        async with api.reading(ada, "Which city?", Idempotency_Key=key) as reading:
            assert is_replayed(reading.response)
            again = await reading.rest()
        assert len(upstream.requests) == 1
    assert text_of(first) == "Paris."
    meta, delta, done = again
    assert (meta, done) == (first[0], first[-1])
    assert (delta.name, delta.data) == ("delta", {"text": "Paris."})
    assert [line for line in caplog.records if line.levelname == "ERROR"] == []


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [(refuses, 502, "provider_failed"), (rejects, 422, "provider_rejected")],
)
async def test_F30_a_failure_is_told_again_and_not_tried_again(
    api: Api,
    ada: Account,
    upstream: Upstream,
    path: str,
    behaviour: Any,
    status: int,
    code: str,
) -> None:
    key = new_key()
    async with upstream.behaving(behaviour):
        first = await post(api, path, ada, key)
        tries = len(upstream.requests)
    async with upstream.behaving(answers):
        again = await post(api, path, ada, key)
        assert upstream.requests == []
    assert tries == len(first.json()["attempts"]) > 0
    assert (is_replayed(first), is_replayed(again)) == (False, True)
    problems = [assert_problem(answer, status, code) for answer in (first, again)]
    assert without_request(problems[0]) == without_request(problems[1])
    (question,) = await api.newest(ada)
    assert question["id"] == problems[1]["question_id"]


@pytest.fixture
def change(service: Running, ada: Account) -> Change:
    """Sets columns of all questions of Ada."""

    async def run(**columns: Any) -> None:
        statement = update(QuestionRow).where(QuestionRow.user_id == ada.id)
        async with service.service(Database).transaction() as session:
            await session.execute(statement.values(**columns))

    return run


async def hang_up(api: Api, who: Account, upstream: Upstream, key: str) -> None:
    async with upstream.stalled():
        asking = asyncio.create_task(post(api, "/questions", who, key))
        await upstream.asked()
        asking.cancel()
        await api.settled(who)


async def test_F30_a_question_whose_asker_hung_up_is_told_as_that(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    key = new_key()
    await hang_up(api, ada, upstream, key)
    async with upstream.behaving(answers):
        again = await post(api, "/questions", ada, key)
        assert upstream.requests == []
    problem = assert_problem(again, 409, "client_gone")
    assert is_replayed(again)
    (question,) = await api.newest(ada)
    assert (problem["question_id"], problem["attempts"]) == (
        question["id"],
        question["attempts"],
    )


@pytest.mark.parametrize("code", ["owner_lost", "server_shutdown"])
async def test_F30_a_question_that_its_server_left_is_told_as_that(
    api: Api,
    ada: Account,
    upstream: Upstream,
    change: Change,
    code: str,
) -> None:
    key = new_key()
    await hang_up(api, ada, upstream, key)
    # As the reaper leaves it, which does not know who was asked.
    await change(error_code=code, attempts=None)
    again = await post(api, "/questions", ada, key)
    problem = assert_problem(again, 503, code)
    assert (is_replayed(again), problem["attempts"]) == (True, [])
    assert problem["question_id"] == (await api.newest(ada))[0]["id"]


async def test_F31_a_question_that_is_still_being_answered_is_not_asked_again(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    for path in BOTH:
        key = new_key()
        async with upstream.stalled() as release:
            asking = asyncio.create_task(post(api, path, ada, key))
            await upstream.asked()
            refused = await post(api, path, ada, key)
            problem = assert_problem(refused, 409, "request_in_progress")
            assert not is_replayed(refused)
            assert int(refused.headers["retry-after"]) > 0
            assert problem["question_id"] == (await api.newest(ada))[0]["id"]
            assert len(upstream.requests) == 1
            release.set()
            assert (await asking).is_success


async def test_F32_a_key_is_good_for_one_question_on_one_route(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    key = new_key()
    async with upstream.behaving(answers):
        assert (await post(api, "/questions", ada, key)).status_code == 201
        for path, content in (
            ("/questions", "Which river?"),
            ("/questions", "Which city? "),
            ("/questions/stream", "Which city?"),
        ):
            refused = await post(api, path, ada, key, content)
            problem = assert_problem(refused, 422, "idempotency_key_reused")
            # Nothing of what is stored.
            assert "question_id" not in problem
            assert not is_replayed(refused)
        assert len(upstream.requests) == 1
    assert len(await api.newest(ada)) == 1


async def test_F32_the_request_is_compared_before_anything_stored_is_used(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    """Neither that it is pending, nor how it failed, is told to another question."""
    key = new_key()
    async with upstream.stalled():
        asking = asyncio.create_task(post(api, "/questions", ada, key))
        await upstream.asked()
        other = await post(api, "/questions", ada, key, "Which river?")
        assert_problem(other, 422, "idempotency_key_reused")
    await asking
    key = new_key()
    async with upstream.behaving(refuses):
        await post(api, "/questions", ada, key)
    other = await post(api, "/questions", ada, key, "Which river?")
    assert_problem(other, 422, "idempotency_key_reused")


async def test_F32_two_people_may_use_the_same_key(api: Api, ada: Account) -> None:
    eve, key = await api.account(), new_key()
    answers = [await post(api, "/questions", who, key) for who in (ada, eve, ada, eve)]
    assert [answer.status_code for answer in answers] == [201] * 4
    assert [is_replayed(answer) for answer in answers] == [False, False, True, True]
    assert [answer.json()["user_id"] for answer in answers] == [ada.id, eve.id] * 2


async def test_F32_both_in_one_statement_ask_for_themselves(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    """The same key of two people, and two keys of one, while a statement is shared."""
    eve, keys = await api.account(), [new_key() for _ in range(10)]
    async with upstream.behaving(answers):
        asked = [(who, key) for who in (ada, eve) for key in keys]
        got = await asyncio.gather(
            *(post(api, "/questions", who, key, f"{key}?") for who, key in asked)
        )
        assert len(upstream.requests) == 20
    for (who, key), answer in zip(asked, got, strict=True):
        told = answer.json()
        assert (answer.status_code, is_replayed(answer)) == (201, False)
        assert (told["user_id"], told["content"]) == (who.id, f"{key}?")


MALFORMED = {
    "empty": b"",
    "blank": b" \t ",
    "256_characters": b"k" * 256,
    "not_ascii": "cl\u00e9".encode(),
    "latin_1": b"cl\xe9",
    "tab": b"a\tb",
}


@pytest.mark.parametrize("key", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("path", BOTH)
async def test_F33_a_malformed_key_is_refused(
    api: Api, ada: Account, upstream: Upstream, path: str, key: bytes
) -> None:
    reply = await exchange(api.url, by_hand(path, ada, b"Idempotency-Key: " + key))
    assert (reply.status, reply.problem["code"]) == (400, "invalid_idempotency_key")
    assert await api.newest(ada) == []


@pytest.mark.parametrize("path", BOTH)
async def test_F33_two_keys_are_refused_even_if_they_are_the_same(
    api: Api, ada: Account, path: str
) -> None:
    for other in (b"k1", b"k2"):
        keys = b"Idempotency-Key: k1", b"idempotency-key: " + other
        reply = await exchange(api.url, by_hand(path, ada, *keys))
        assert (reply.status, reply.problem["code"]) == (400, "invalid_idempotency_key")
    assert await api.newest(ada) == []


@pytest.mark.parametrize("junk", [b"\0", b"\r", b"\n", b"\r\n", b"\x7f"], ids=repr)
async def test_F33_a_line_end_or_nul_within_a_key_is_no_part_of_one(
    api: Api, ada: Account, junk: bytes
) -> None:
    """It ends the line, or the server takes it for no HTTP at all."""
    key = b"Idempotency-Key: a" + junk + b"b"
    reply = await exchange(api.url, by_hand("/questions", ada, key))
    assert reply.status == 400
    assert reply.is_refused_by_the_server
    assert await api.newest(ada) == []


@pytest.mark.parametrize("key", ["k", "k" * 255, '"quoted, key"', "~!@#$%^&*()"])
async def test_F33_what_is_visible_ascii_of_255_characters_is_a_key(
    api: Api, ada: Account, key: str
) -> None:
    answers = [await post(api, "/questions", ada, key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [is_replayed(answer) for answer in answers] == [False, True]


def by_hand(path: str, who: Account, *headers: bytes) -> bytes:
    body = b'{"content": "Which city?"}'
    return request(
        "POST",
        path,
        f"Authorization: Bearer {who.token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
        body=body,
    )


@pytest.mark.slow
async def test_A20_fifty_posts_of_one_key_ask_once(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    for path in BOTH:
        key = new_key()
        async with upstream.behaving(answers):
            got = await asyncio.gather(*(post(api, path, ada, key) for _ in range(50)))
            assert len(upstream.requests) == 1
        assert_asked_once(list(got))


def assert_asked_once(answers: list[httpx.Response]) -> None:
    """One was answered; every other is told so, or that it is on its way."""
    told = [answer for answer in answers if answer.is_success]
    assert sum(not is_replayed(answer) for answer in told) == 1
    for answer in answers:
        if not answer.is_success:
            assert_problem(answer, 409, "request_in_progress")


async def test_what_is_refused_leaves_its_key_free(api: Api, ada: Account) -> None:
    key = new_key()
    nobody = Account(ada.id, ada.username, "no-token")
    assert_problem(await post(api, "/questions", nobody, key), 401)
    for path in BOTH:
        assert_problem(await post(api, path, ada, key, "  "), 422)
    answer = await post(api, "/questions", ada, key)
    assert (answer.status_code, is_replayed(answer)) == (201, False)


async def test_the_key_of_a_question_that_was_deleted_is_free_again(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    key = new_key()
    first = (await post(api, "/questions", ada, key)).json()["id"]
    gone = await api.http.delete(f"/questions/{first}", headers=ada.auth)
    assert gone.status_code == 204
    async with upstream.behaving(answers):
        answer = await post(api, "/questions", ada, key, "Another one?")
        assert len(upstream.requests) == 1
    assert (answer.status_code, is_replayed(answer)) == (201, False)
    assert answer.json()["id"] > first


async def test_a_key_is_kept_for_a_day_and_then_forgotten(
    api: Api, ada: Account, service: Running, change: Change
) -> None:
    key = new_key()
    first = await post(api, "/questions", ada, key)
    upkeep = service.service(Upkeep)
    day = 24 * 60 * 60
    for seconds, replays in ((day - 60, True), (day + 60, False)):
        await change(asked_at=db_after(-seconds))
        await upkeep.forget_keys()
        again = await post(api, "/questions", ada, key)
        assert (again.status_code, is_replayed(again)) == (201, replays)
        assert (again.json()["id"] == first.json()["id"]) is replays
    # What was answered stays.
    assert len(await api.newest(ada)) == 2


async def test_without_a_key_nothing_is_a_replay(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    """Without a key the same words are asked as often as they are sent."""
    async with upstream.behaving(answers):
        got = [await api.ask(ada, "Which city?") for _ in range(2)]
        assert len(upstream.requests) == 2
    assert len({answer.json()["id"] for answer in got}) == 2
    assert not any(is_replayed(answer) for answer in got)
