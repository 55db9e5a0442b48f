"""Whatever a model's server does while it streams is told, and kept, as it is.

Before the first piece it is an ordinary problem; after it, the event `error`.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.testing import Running
from tests.conftest import Databases, assert_no_secret_in, served
from tests.support.api import Account, Api, StreamEvent
from tests.support.config import write_config
from tests.support.faults import SAID, assert_failed
from tests.support.upstream import (
    DONE,
    KEY,
    STREAM_HEAD,
    Behaviour,
    Received,
    Upstream,
    Wire,
    chunk,
    completion,
    deltas,
    ending,
    event,
    framed,
    streams,
    upstream_of_its_own,
)

COUNTED = {"prompt_tokens": 12, "completion_tokens": 34}
QUESTION = "What comes?"
LONGEST_ANSWER = 20_000
PING = b": PROCESSING\n\n"
BAD = "provider_bad_response"
BROKEN = "provider_stream_broken"


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, upstream: Upstream
) -> AsyncIterator[Running]:
    """A service with one place at its model: whoever keeps it is found out."""
    file = write_config(
        tmp_path_factory.mktemp("service") / "app.toml",
        database_url,
        upstream.base_url,
        llm=f"longest_answer_bytes = {LONGEST_ANSWER}",
        providers__main="max_concurrency = 1\nmax_waiting = 0",
    )
    async with served(file) as (found, _):
        yield found
        await assert_no_secret_in(found)


@pytest.fixture(scope="module")
async def hasty(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: Upstream
) -> AsyncIterator[Api]:
    """A service that soon loses its patience with its model."""
    file = write_config(
        tmp_path_factory.mktemp("hasty") / "app.toml",
        await databases.migrated("sqlite"),
        upstream.base_url,
        providers__main="first_token_seconds = 0.7\nidle_seconds = 0.7",
    )
    async with served(file) as (_, api):
        yield api


async def read_answer(
    api: Api, who: Account, upstream: Upstream, behaviour: Behaviour
) -> dict[str, Any]:
    """Read a stream that must be complete; what it says is also what is stored."""
    async with upstream.behaving(behaviour):
        meta, *pieces, done = await api.read(who, QUESTION)
        assert len(upstream.requests) == 1
    assert (meta.name, done.name) == ("meta", "done")
    question: dict[str, Any] = done.data
    assert meta.data == {"id": question["id"]}
    assert question["status"] == "answered"
    assert question["answer"] == told(pieces)
    assert [a["outcome"] for a in question["attempts"]] == ["answered"]
    assert (await api.get(f"/questions/{question['id']}", who)).json() == question
    return question


def told(events: list[StreamEvent]) -> str:
    """The pieces of an answer, put together."""
    assert {event.name for event in events} <= {"delta"}
    return "".join(event.data["text"] for event in events)


async def read_failure(
    api: Api, who: Account, upstream: Upstream, behaviour: Behaviour, code: str
) -> str:
    """Read a stream that must break off; returns the partial answer, as it is kept."""
    async with upstream.behaving(behaviour), api.reading(who, QUESTION) as reading:
        events = await reading.rest()
        # Half an answer has been read: nobody is asked again.
        assert len(upstream.requests) == 1
    return await assert_broken(api, who, reading.response, events, code)


async def assert_broken(
    api: Api,
    who: Account,
    response: httpx.Response,
    events: list[StreamEvent],
    code: str,
) -> str:
    """The stream and the stored question tell the same; returns the partial answer."""
    meta, *pieces, error = events
    assert (meta.name, error.name) == ("meta", "error")
    problem = error.data
    assert problem["code"] == code
    assert problem["detail"] == problem["title"]
    assert problem["question_id"] == meta.data["id"]
    assert problem["request_id"] == response.headers["x-request-id"]
    stored = await api.get(f"/questions/{meta.data['id']}", who)
    question = stored.json()
    assert (question["status"], question["error_code"]) == ("failed", code)
    assert [(a["provider"], a["outcome"]) for a in question["attempts"]] == [
        ("main", code)
    ]
    assert problem["attempts"] == question["attempts"]
    unset = ("provider", "model", "usage", "finish_reason", "answered_at")
    assert {question[key] for key in unset} == {None}
    answer: str = question["answer"]
    assert answer == told(pieces)
    for secret in (SAID, KEY):
        assert secret not in stored.text + json.dumps(problem)
    return answer


async def read_refusal(
    api: Api,
    who: Account,
    upstream: Upstream,
    behaviour: Behaviour,
    status: int,
    code: str,
) -> None:
    """A stream that never begins is an ordinary problem."""
    async with upstream.behaving(behaviour), api.reading(who, QUESTION) as reading:
        refusal = await reading.refusal()
    problem = await assert_failed(api, who, refusal, status, code)
    assert {a["outcome"] for a in problem["attempts"]} == {code}
    assert len(problem["attempts"]) <= 2


class Endless:
    """Sends this, then one part after the other until we hang up, which sets `gone`."""

    def __init__(self, *parts: bytes, then: bytes = b"", pause: float = 0) -> None:
        self._parts = parts
        self._then = then
        self._pause = pause
        self.gone = asyncio.Event()

    async def __call__(self, wire: Wire, received: Received) -> None:
        sending = asyncio.create_task(self._send(wire))
        await wire.closed_by_client()
        self.gone.set()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, wire: Wire) -> None:
        await wire.send(*self._parts)
        while self._then:
            await asyncio.sleep(self._pause)
            await wire.send(self._then)

    async def is_left(self) -> None:
        """Wait until we have hung up, which is at once."""
        async with asyncio.timeout(1):
            await self.gone.wait()


def endless(*events: bytes, then: bytes = b"", pause: float = 0) -> Endless:
    """A stream of these events, and then of one event again and again."""
    more = framed(then) if then else b""
    parts = STREAM_HEAD.encode(), *map(framed, events)
    return Endless(*parts, then=more, pause=pause)


def sends(*parts: bytes | str) -> Behaviour:
    """Exactly these bytes, and then the end of the connection."""

    async def behave(wire: Wire, received: Received) -> None:
        await wire.send(*parts)
        wire.writer.close()

    return behave


def responds(body: Any = "", **how: Any) -> Behaviour:
    """A well-formed response, which is no stream."""

    async def behave(wire: Wire, received: Received) -> None:
        await wire.respond(body, **how)

    return behave


async def resets(wire: Wire, received: Received) -> None:
    wire.reset()


# What is complete.


async def test_the_answer_is_told_as_it_comes(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    written = asyncio.Queue[bytes | None]()

    async def dictate(wire: Wire, received: Received) -> None:
        await wire.send(STREAM_HEAD)
        while part := await written.get():
            await wire.send(framed(part))
        await wire.send("0\r\n\r\n")

    async with upstream.behaving(dictate):
        written.put_nowait(event(chunk("", role="assistant")))
        written.put_nowait(event(chunk("One")))
        async with api.reading(ada, QUESTION) as reading:
            assert (await reading.next()).name == "meta"
            for piece in (" two", " three \U0001f600", " four"):
                assert (await reading.next()).name == "delta"
                written.put_nowait(event(chunk(piece)))
            for part in ending(usage=COUNTED):
                written.put_nowait(part)
            written.put_nowait(None)
            last, done = await reading.rest()
    assert last.data == {"text": " four"}
    assert done.data["answer"] == "One two three \U0001f600 four"
    (received,) = upstream.requests
    assert received.json["stream"] is True
    assert received.json["stream_options"] == {"include_usage": True}


ODD = (
    b"\xef\xbb\xbf: hello\r\n\r\nid: 7\r\nretry: 10\r\n\r\n"
    b'event: message\rdata: {"choices": [{"delta": {\rdata: "content": "One,"}}]}\r\r'
    + event(chunk(" two, ")).replace(b"\n", b"\r\n")
    + f"data:{json.dumps(chunk('três €'), ensure_ascii=False)}\n\n".encode()
    + b": bye\n\n"
    + b"".join(ending(usage=COUNTED))
)


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_U25_an_odd_but_valid_stream_is_read_however_it_is_cut(
    api: Api, ada: Account, upstream: Upstream, size: int
) -> None:
    parts = [ODD[at : at + size] for at in range(0, len(ODD), size)]
    question = await read_answer(api, ada, upstream, streams(*parts))
    assert question["answer"] == "One, two, três €"
    assert question["usage"] == COUNTED


COMPLETE: dict[str, Behaviour] = {
    "in_order": streams(*deltas("An ", "answer."), *ending()),
    "the_reason_with_the_last_piece": streams(
        *deltas("An "), event(chunk("answer.", reason="stop")), DONE
    ),
    "U23_a_reason_but_no_done": streams(
        *deltas("An ", "answer."), event(chunk(reason="stop"))
    ),
    "U23_done_but_no_reason": streams(*deltas("An ", "answer."), DONE),
    "a_reason_in_every_chunk": streams(
        event(chunk("An ", reason="stop")), event(chunk("answer.", reason="stop")), DONE
    ),
    "U22_cut_after_its_end": streams(
        *deltas("An ", "answer."), event(chunk(reason="stop")), is_cut=True
    ),
    "U25_garbage_after_its_end": streams(
        *deltas("An ", "answer."), event(chunk(reason="stop")), b"data: {\n\n"
    ),
    "json_instead_of_a_stream": responds(completion("An answer.")),
    "empty_and_foreign_chunks": streams(
        event({}),
        event(chunk("", role="assistant")),
        event(chunk() | {"choices": []}),
        event(chunk() | {"choices": None}),
        event(chunk() | {"error": None}),
        *deltas("An ", "", "answer."),
        *ending(),
    ),
    "U29_the_first_of_several_answers": streams(
        event(chunk("An ")),
        event({"choices": [{"index": 1, "delta": {"content": "Another."}}]}),
        event(chunk("answer.")),
        event({"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]}),
        *ending(),
    ),
}


@pytest.mark.parametrize("behaviour", COMPLETE.values(), ids=COMPLETE.keys())
async def test_an_answer_with_an_end_is_complete(
    api: Api, ada: Account, upstream: Upstream, behaviour: Behaviour
) -> None:
    question = await read_answer(api, ada, upstream, behaviour)
    assert question["answer"] == "An answer."
    assert (question["model"], question["finish_reason"]) == ("fake-1", "stop")
    assert question["provider"] == "main"


async def test_a_backend_that_does_not_hang_up_keeps_nobody_waiting(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    first, counted, _ = ending(usage=COUNTED)
    stays = endless(*deltas("An answer."), first, counted, then=PING, pause=0.1)
    async with asyncio.timeout(60):
        question = await read_answer(api, ada, upstream, stays)
    assert (question["answer"], question["usage"]) == ("An answer.", COUNTED)
    await stays.is_left()


async def ends_late(wire: Wire, received: Received) -> None:
    """All of the answer at once; its usage and its end only a moment later."""
    first, *rest = ending(usage=COUNTED)
    await wire.send(STREAM_HEAD, *map(framed, [*deltas("An answer."), first]))
    await asyncio.sleep(0.1)
    await wire.send(*map(framed, rest), "0\r\n\r\n")


@pytest.mark.parametrize(
    "behaviour",
    [COMPLETE["in_order"], COMPLETE["U23_a_reason_but_no_done"], ends_late],
    ids=["in_order", "no_done", "a_late_end"],
)
async def test_a_connection_is_kept_after_a_clean_end(
    api: Api, ada: Account, upstream: Upstream, behaviour: Behaviour
) -> None:
    await read_answer(api, ada, upstream, behaviour)
    connections = upstream.connections
    for _ in range(3):
        question = await read_answer(api, ada, upstream, behaviour)
    assert upstream.connections == connections
    assert question["usage"] == (COUNTED if behaviour is ends_late else None)


USAGES: dict[str, tuple[Any, Any]] = {
    "as_it_should": (COUNTED, COUNTED),
    "missing": (None, None),
    "negative": (
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": 0, "completion_tokens": 1},
    ),
    "huge": (
        {"prompt_tokens": 10**30, "completion_tokens": 2**31},
        {"prompt_tokens": 2**31 - 1, "completion_tokens": 2**31 - 1},
    ),
    "in_words": (
        {"prompt_tokens": "12", "completion_tokens": 7},
        {"prompt_tokens": None, "completion_tokens": 7},
    ),
    "of_another_kind": ([1, 2], None),
}


@pytest.mark.parametrize(("said", "kept"), USAGES.values(), ids=USAGES.keys())
async def test_U29_usage_comes_after_the_answer_if_at_all(
    api: Api, ada: Account, upstream: Upstream, said: Any, kept: Any
) -> None:
    behaviour = streams(*deltas("An answer."), *ending(usage=said))
    question = await read_answer(api, ada, upstream, behaviour)
    assert question["usage"] == kept


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("length", "length"),
        ("content_filter", "filtered"),
        ("tool_calls", "other"),
        ("x" * 500, "other"),
    ],
)
async def test_U29_how_an_answer_ended_is_kept(
    api: Api, ada: Account, upstream: Upstream, said: str, kept: str
) -> None:
    behaviour = streams(*deltas("An answer."), *ending(said))
    question = await read_answer(api, ada, upstream, behaviour)
    assert question["finish_reason"] == kept


NASTY = "\x1b[31mred\u202eltr</script><b>\ufeff\U0001f600\u0301\u2028\x85 \r\n\n\ufffe"


async def test_U28_odd_characters_are_told_and_stored_alike(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    behaviour = streams(
        *deltas("a\0", "b\ud800", "c\udfff", "d", NASTY),
        event(chunk(reason="stop") | {"model": "m\0\ud800"}),
        DONE,
    )
    question = await read_answer(api, ada, upstream, behaviour)
    assert question["answer"] == f"a\ufffdb\ufffdc\ufffdd{NASTY}"
    assert question["model"] == "m\ufffd\ufffd"


HALVES = {
    "two_halves": (["a \ud83d", "\ude00 b"], "a \U0001f600 b"),
    "with_a_pause_between": (["\ud83d", "", "\ude00"], "\U0001f600"),
    "two_in_a_row": (["\ud83d", "\ude00\ud83d", "\ude01"], "\U0001f600\U0001f601"),
    "first_half_alone": (["a\ud83d", "b", "\ude00"], "a\ufffdb\ufffd"),
    "first_half_twice": (["\ud83d", "\ud83d", "\ude00"], "\ufffd\U0001f600"),
    "first_half_before_another": (["\ud83d", "\U0001f600"], "\ufffd\U0001f600"),
    "first_half_last": (["a\ud83d"], "a\ufffd"),
    "second_half_first": (["\ude00", "\ud83d", "a"], "\ufffd\ufffda"),
}


@pytest.mark.parametrize(("sent", "answer"), HALVES.values(), ids=HALVES)
async def test_U28_a_character_sent_in_two_halves_is_one_character(
    api: Api, ada: Account, upstream: Upstream, sent: list[str], answer: str
) -> None:
    events = [event(chunk(text, reasoning="" if text else "Hm.")) for text in sent]
    question = await read_answer(api, ada, upstream, streams(*events, *ending()))
    assert question["answer"] == answer


async def test_U28_half_a_character_counts_towards_the_limit(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    fits = "x" * (LONGEST_ANSWER - 3)
    behaviour = streams(*deltas(fits, "\ud83d"), *ending())
    answer = (await read_answer(api, ada, upstream, behaviour))["answer"]
    assert answer == f"{fits}\ufffd"
    beyond = streams(*deltas(fits, "x\ud83d"), *ending())
    kept = await read_failure(api, ada, upstream, beyond, "answer_too_large")
    assert kept == f"{fits}x"


# What breaks off.

BREAKS: dict[str, tuple[list[bytes], bool, str]] = {
    "U22_cut_between_chunks": ([], True, BROKEN),
    "U22_cut_within_an_event": ([event(chunk(SAID))[:-9]], True, BROKEN),
    "U23_a_clean_end_and_no_mark": ([], False, BROKEN),
    "U23_a_mark_without_its_blank_line": ([DONE[:-1]], False, BROKEN),
    "U24_an_error": ([event({"error": {"message": f"{SAID} {KEY}"}})], False, BROKEN),
    "U24_an_error_in_a_word": ([event({"error": SAID})], False, BROKEN),
    "U24_an_error_with_choices": ([event(chunk() | {"error": SAID})], False, BROKEN),
    "U25_a_line_of_400_kB": (
        [b"data: " + b"x" * 400_000 + b"\n\n", *ending()],
        False,
        BAD,
    ),
    "U25_an_event_of_400_kB": ([b"data: 123456789\n" * 25_000, *ending()], False, BAD),
    "not_json": ([b"data: <p>words-of-the-backend\n\n", *ending()], False, BAD),
    "a_list": ([b"data: []\n\n", *ending()], False, BAD),
    "choices_of_another_kind": ([event({"choices": 5}), *ending()], False, BAD),
    "a_choice_of_another_kind": ([event({"choices": [5]}), *ending()], False, BAD),
    "a_delta_of_another_kind": (
        [event({"choices": [{"delta": SAID}]}), *ending()],
        False,
        BAD,
    ),
    "content_of_another_kind": (
        [event({"choices": [{"delta": {"content": {"text": SAID}}}]}), *ending()],
        False,
        BAD,
    ),
    "U11_arrays_30000_deep": ([b"data: " + b"[" * 30_000 + b"\n\n"], False, BAD),
    "U11_a_number_of_5000_digits": (
        [b'data: {"choices": ' + b"9" * 5_000 + b"}\n\n"],
        False,
        BAD,
    ),
}


@pytest.mark.parametrize(
    ("events", "is_cut", "code"), BREAKS.values(), ids=BREAKS.keys()
)
async def test_an_answer_that_breaks_off_is_kept_as_far_as_it_came(
    api: Api,
    ada: Account,
    upstream: Upstream,
    events: list[bytes],
    is_cut: bool,
    code: str,
) -> None:
    behaviour = streams(*deltas("Half ", "an"), *events, is_cut=is_cut)
    assert await read_failure(api, ada, upstream, behaviour, code) == "Half an"
    # Its place and its connection are free for the next question.
    await read_answer(api, ada, upstream, COMPLETE["in_order"])


async def test_U22_a_reset_breaks_an_answer_off(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    is_read = asyncio.Event()

    async def reset_later(wire: Wire, received: Received) -> None:
        await wire.send(STREAM_HEAD, *map(framed, deltas("Half")))
        await is_read.wait()  # a reset takes along what is on its way
        wire.reset()

    async with upstream.behaving(reset_later), api.reading(ada, QUESTION) as reading:
        events = [await reading.next(), await reading.next()]
        is_read.set()
        events += await reading.rest()
    response = reading.response
    assert await assert_broken(api, ada, response, events, BROKEN) == "Half"


async def test_U25_no_end_of_line_is_given_up_at_once(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    drips = endless(*deltas("Half"), then=b"x" * 4_096)
    assert await read_failure(api, ada, upstream, drips, BAD) == "Half"
    await drips.is_left()


@pytest.mark.parametrize("size", [1, 30_000])
async def test_U27_an_answer_without_end_is_cut_at_the_limit(
    api: Api, ada: Account, upstream: Upstream, size: int
) -> None:
    too_much = endless(then=event(chunk("x" * size)) * (500 if size == 1 else 1))
    if size == 1:
        kept = await read_failure(api, ada, upstream, too_much, "answer_too_large")
        assert kept == "x" * LONGEST_ANSWER
    else:
        code = "answer_too_large"
        await read_refusal(api, ada, upstream, too_much, 502, code)
    await too_much.is_left()


async def test_U27_the_limit_counts_bytes(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    pieces = ["é" * (LONGEST_ANSWER // 2 - 1), "ab"]
    fits = streams(*deltas(*pieces), *ending())
    assert (await read_answer(api, ada, upstream, fits))["answer"] == "".join(pieces)
    beyond = streams(*deltas(*pieces, "c"), *ending())
    kept = await read_failure(api, ada, upstream, beyond, "answer_too_large")
    assert kept == "".join(pieces)


# What never begins.

ECHOES = {"error": {"message": f"{SAID}: bad key {KEY}"}}
REFUSALS: dict[str, tuple[Behaviour, int, str]] = {
    "U05_closes_before_headers": (sends(), 502, "provider_unreachable"),
    "U05_resets_before_headers": (resets, 502, "provider_unreachable"),
    "U07_a_banner": (sends(f"SSH-2.0-{SAID}\r\n"), 502, BAD),
    "U07_a_bad_chunk": (sends(STREAM_HEAD, f"zz{SAID}\r\n"), 502, BAD),
    "U08_cut_after_its_head": (sends(STREAM_HEAD), 502, BROKEN),
    "U08_cut_within_its_first_event": (
        streams(event(chunk(SAID))[:-5], is_cut=True),
        502,
        BROKEN,
    ),
    "U08_shorter_than_announced": (
        sends(STREAM_HEAD.replace("Transfer-Encoding: chunked", "Content-Length: 99")),
        502,
        BROKEN,
    ),
    "U09_gzip": (
        responds(
            SAID,
            content_type="text/event-stream",
            headers="Content-Encoding: gzip\r\n",
        ),
        502,
        BAD,
    ),
    "U10_html": (responds(f"<p>{SAID}</p>", content_type="text/html"), 502, BAD),
    "U12_an_empty_stream": (streams(), 502, BROKEN),
    "U14_200_with_an_error": (responds(ECHOES), 502, BAD),
    "U24_an_error_as_the_first_event": (streams(event(ECHOES)), 502, BROKEN),
    "U15_400": (responds(ECHOES, status="400 Bad"), 422, "provider_rejected"),
    "U16_401": (responds(ECHOES, status="401 No"), 502, "provider_auth"),
    "U16_403": (responds(ECHOES, status="403 No"), 502, "provider_auth"),
    "U17_404": (responds(ECHOES, status="404 No"), 502, "provider_misconfigured"),
    "U18_500": (responds(ECHOES, status="500 No"), 502, "provider_failed"),
    "U18_503": (responds(ECHOES, status="503 No"), 503, "provider_overloaded"),
    "U18_529": (responds(ECHOES, status="529 No"), 503, "provider_overloaded"),
    "U20_a_redirect": (
        responds(status="307 There", headers="Location: /v2\r\n"),
        502,
        BAD,
    ),
    "U25_a_line_of_400_kB": (streams(b"data: " + b"x" * 400_000), 502, BAD),
    "U29_an_end_without_an_answer": (streams(*ending("content_filter")), 502, BAD),
    "U29_nothing_but_empty_pieces": (streams(*deltas("", ""), *ending()), 502, BAD),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys()
)
async def test_a_failure_before_the_first_piece_is_an_ordinary_problem(
    api: Api,
    ada: Account,
    upstream: Upstream,
    behaviour: Behaviour,
    status: int,
    code: str,
) -> None:
    await read_refusal(api, ada, upstream, behaviour, status, code)
    await read_answer(api, ada, upstream, COMPLETE["in_order"])


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("429 Too Many", "provider_rate_limited"),
        ("503 Busy", "provider_overloaded"),
        ("529 Overloaded", "provider_overloaded"),
    ],
)
async def test_U19_how_long_to_wait_is_told_before_a_stream_begins(
    tmp_path: Path, databases: Databases, status: str, code: str
) -> None:
    url = await databases.migrated("sqlite")
    async with upstream_of_its_own() as upstream:
        file = write_config(tmp_path / "app.toml", url, upstream.base_url)
        refuses = responds(ECHOES, status=status, headers="Retry-After: 50\r\n")
        async with (
            served(file) as (_, api),
            upstream.behaving(refuses),
        ):
            ada = await api.account()
            async with api.reading(ada, QUESTION) as reading:
                refusal = await reading.refusal()
            await assert_failed(api, ada, refusal, 503, code)
            assert refusal.headers["retry-after"] == "50"
            # More than we can afford to wait, so it was not asked once more.
            assert len(upstream.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        sends(),
        sends(STREAM_HEAD),
        streams(event(chunk("Ha"))[:-5], is_cut=True),
        streams(*deltas("\ud83d"), is_cut=True),
    ],
    ids=[
        "U05_closed",
        "U08_cut",
        "U08_cut_within_an_event",
        "U08_cut_within_a_character",
    ],
)
async def test_a_stream_that_breaks_before_its_first_piece_is_asked_for_again(
    tmp_path: Path, databases: Databases, first: Behaviour
) -> None:
    url = await databases.migrated("sqlite")
    behaviours = iter([first, COMPLETE["in_order"]])

    async def behave(wire: Wire, received: Received) -> None:
        await next(behaviours)(wire, received)

    async with upstream_of_its_own() as upstream:
        file = write_config(tmp_path / "app.toml", url, upstream.base_url)
        async with served(file) as (_, api), upstream.behaving(behave):
            meta, *pieces, done = await api.read(await api.account(), QUESTION)
    assert (meta.name, told(pieces), done.name) == ("meta", "An answer.", "done")
    failed, answered = done.data["attempts"]
    assert failed["outcome"].startswith("provider_")
    assert answered["outcome"] == "answered"


async def test_U27_what_a_failed_try_said_does_not_count_towards_the_limit(
    tmp_path: Path, databases: Databases
) -> None:
    url = await databases.migrated("sqlite")
    limit = f"longest_answer_bytes = {LONGEST_ANSWER}"
    longest = "x" * LONGEST_ANSWER
    cut = streams(*deltas(longest), is_cut=True)
    behaviours = iter([cut, responds(completion(longest))])

    async def behave(wire: Wire, received: Received) -> None:
        await next(behaviours)(wire, received)

    async with upstream_of_its_own() as upstream:
        file = write_config(tmp_path / "app.toml", url, upstream.base_url, llm=limit)
        async with served(file) as (_, api), upstream.behaving(behave):
            answer = await api.ask(await api.account(), QUESTION)
    assert answer.status_code == 201, answer.text
    assert answer.json()["answer"] == longest
    assert len(answer.json()["attempts"]) == 2


# What stalls.

HEAD = STREAM_HEAD.encode()
STALLS: dict[str, Endless] = {
    "U02_says_nothing": Endless(),
    "U03_stalls_after_the_status": Endless(b"HTTP/1.1 200 OK\r\n"),
    "U03_stalls_after_the_head": Endless(HEAD),
    "U03_stalls_after_one_byte": endless(b"d"),
    "U04_drips_its_head": Endless(HEAD[:-2] + b"X-Slow: ", then=b"z", pause=0.05),
    "U04_drips_an_event": endless(b"data: ", then=b"z", pause=0.05),
    "U26_pings": endless(then=PING, pause=0.05),
    "U26_pings_and_then_nothing": endless(PING, PING),
    "U26_empty_pieces": endless(then=event(chunk("")), pause=0.05),
    "U26_empty_thoughts": endless(
        then=event(chunk("", reasoning_content="", reasoning=None)), pause=0.05
    ),
    "U26_chunks_without_choices": endless(then=event({"choices": []}), pause=0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("stalls", STALLS.values(), ids=STALLS.keys())
async def test_a_stream_that_does_not_begin_in_time_is_a_timeout(
    hasty: Api, upstream: Upstream, stalls: Endless
) -> None:
    stalls.gone.clear()
    ada = await hasty.account()
    await read_refusal(hasty, ada, upstream, stalls, 504, "provider_timeout")
    await stalls.is_left()


PAUSES: dict[str, tuple[list[bytes], bytes]] = {
    "U03_nothing_more": ([], b""),
    "U04_drips_an_event": ([b"data: "], b"z"),
    "U26_pings": ([], PING),
    "U26_pings_and_then_nothing": ([PING, PING], b""),
    "U26_empty_pieces": ([], event(chunk(""))),
}


@pytest.mark.slow
@pytest.mark.parametrize(("events", "then"), PAUSES.values(), ids=PAUSES.keys())
async def test_a_pause_that_is_too_long_breaks_a_stream_off(
    hasty: Api, upstream: Upstream, events: list[bytes], then: bytes
) -> None:
    stalls = endless(*deltas("Half ", "an"), *events, then=then, pause=0.05)
    code = "provider_timeout"
    ada = await hasty.account()
    assert await read_failure(hasty, ada, upstream, stalls, code) == "Half an"
    await stalls.is_left()


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_U26_a_model_that_reasons_is_alive_and_keeps_it_to_itself(
    hasty: Api, upstream: Upstream, name: str
) -> None:
    async def reason(wire: Wire, received: Received) -> None:
        await wire.send(STREAM_HEAD)
        # Twice as long as any pause may be.
        for _ in range(10):
            await wire.send(framed(event(chunk("", **{name: f"Hm, {SAID}."}))))
            await asyncio.sleep(0.14)
        await wire.send(*map(framed, [*deltas("42"), *ending()]), "0\r\n\r\n")

    ada = await hasty.account()
    question = await read_answer(hasty, ada, upstream, reason)
    assert question["answer"] == "42"
