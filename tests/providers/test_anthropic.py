"""Anthropic's Messages API: what is asked, and what an answer is read as."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import StartRefused
from core.settings import load_settings
from core.testing import Running
from providers.anthropic import AnthropicChat, AnthropicOptions, open_anthropic
from providers.public import (
    ChatRequest,
    Delta,
    Finish,
    FinishReason,
    ProviderAuth,
    ProviderBadResponse,
    ProviderError,
    ProviderFailed,
    ProviderMisconfigured,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStreamBroken,
    Usage,
)
from tests.conftest import Databases, assert_no_secret_in, served
from tests.support import anthropic as fake
from tests.support.api import Account, Api, text_of
from tests.support.config import write_config
from tests.support.faults import SAID, assert_failed
from tests.support.upstream import KEY, Behaviour, Received, Upstream, Wire

BY_CLAUDE = {"VOPROS_LLM__PROVIDER": "claude"}
PLAIN = ChatRequest("Why?")
STREAMED = ChatRequest("Why?", streamed=True)


def options(upstream: Upstream, **more: Any) -> AnthropicOptions:
    table = {"type": "anthropic", "base_url": upstream.base_url, "model": "claude-x"}
    return AnthropicOptions.model_validate(table | {"api_key": KEY} | more)


@pytest.fixture
async def chat(upstream: Upstream) -> AsyncIterator[AnthropicChat]:
    """The provider, without the rest of the service."""
    async with open_anthropic("claude", options(upstream)) as found:
        yield found


async def heard(chat: AnthropicChat, request: ChatRequest) -> list[Delta | Finish]:
    return [event async for event in chat.stream(request)]


def responds(body: Any, **how: Any) -> Behaviour:
    async def behave(wire: Wire, received: Received) -> None:
        await wire.respond(body, **how)

    return behave


def streams(*events: str) -> Behaviour:
    async def behave(wire: Wire, received: Received) -> None:
        await fake.streams(wire, "".join(events))

    return behave


# What is asked.


async def test_a_question_is_asked_as_the_reference_says(upstream: Upstream) -> None:
    more = {"max_tokens": 99, "body": {"top_k": 5}, "headers": {"X-Team": "red"}}
    async with upstream.behaving(fake.answers):
        async with open_anthropic("claude", options(upstream, **more)) as chat:
            await heard(chat, ChatRequest("Why?", "Be brief.", 0.5))
        (received,) = upstream.requests
    assert received.head.startswith("POST /v1/messages HTTP/1.1")
    assert received.header("x-api-key") == KEY
    assert received.header("anthropic-version") == "2023-06-01"
    assert received.header("authorization") is None
    assert received.header("x-team") == "red"
    assert received.json == {
        "model": "claude-x",
        "max_tokens": 99,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Why?"}],
        "temperature": 0.5,
        "top_k": 5,
    }


async def test_what_is_not_configured_is_not_sent_but_max_tokens(
    chat: AnthropicChat, upstream: Upstream
) -> None:
    async with upstream.behaving(fake.answers):
        await heard(chat, PLAIN)
        await heard(chat, ChatRequest("Why?", max_tokens=7, streamed=True))
        plain, streamed = (received.json for received in upstream.requests)
    assert plain.keys() == {"model", "max_tokens", "messages"}
    assert plain["max_tokens"] == 4096
    assert (streamed["max_tokens"], streamed["stream"]) == (7, True)


async def test_the_models_are_listed(chat: AnthropicChat, upstream: Upstream) -> None:
    async with upstream.behaving(fake.answers):
        assert await chat.models() == (fake.MODEL, "claude-fake-2")
        assert "limit=1000" in upstream.requests[0].head


BAD_OPTIONS = {
    "no_key": ('model = "m"', "api_key: this key is needed"),
    "no_model": (f'api_key = "{KEY}"', "model: this key is needed"),
    "a_key_of_two_lines": (f'model = "m"\napi_key = "{KEY}\\n"', "printable ASCII"),
    "a_key_in_clear": (
        f'model = "m"\napi_key = "{KEY}"\nbase_url = "http://10.0.0.1/v1"',
        "base_url must be https:// where a key is sent",
    ),
    "a_version_that_is_none": (
        f'model = "m"\napi_key = "{KEY}"\napi_version = "latest"',
        "api_version",
    ),
    "what_is_ours_in_body": (
        f'model = "m"\napi_key = "{KEY}"\nbody = {{ system = "s", stream = true }}',
        "body: must not set stream, system",
    ),
}


@pytest.mark.parametrize(("lines", "told"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_refuses_the_start(tmp_path: Path, lines: str, told: str) -> None:
    table = f'type = "anthropic"\n{lines}'
    tables = {"providers__claude": table}
    file = write_config(tmp_path / "app.toml", "sqlite:///x.db", **tables)
    with pytest.raises(StartRefused) as refused:
        load_settings(file, BY_CLAUDE)
    (line,) = str(refused.value).splitlines()
    assert "[providers.claude]" in line
    assert told in line
    assert KEY not in line


# What an answer is read as.


async def test_the_text_of_an_answer_is_all_of_its_blocks_of_text(
    chat: AnthropicChat, upstream: Upstream
) -> None:
    thought = {"type": "thinking", "thinking": SAID, "signature": "abc"}
    body = fake.message(thought, fake.text("Be"), {"type": "new"}, fake.text("cause."))
    async with upstream.behaving(responds(body)):
        events = await heard(chat, PLAIN)
    assert events == [Delta("Because."), Finish(fake.MODEL, "stop", Usage(12, 34))]


async def test_a_stream_is_read_piece_by_piece(
    chat: AnthropicChat, upstream: Upstream
) -> None:
    async with upstream.behaving(fake.answers):
        events = await heard(chat, STREAMED)
    finish = Finish(fake.MODEL, "stop", Usage(12, 34))
    assert events == [Delta("Answer to: "), Delta("Why?"), finish]


async def test_a_thought_is_a_sign_of_life_that_shows_nothing_and_a_ping_is_none(
    chat: AnthropicChat, upstream: Upstream
) -> None:
    thoughts = [
        {"type": "thinking_delta", "thinking": SAID},
        {"type": "signature_delta", "signature": SAID},
    ]
    begun = {"type": "text", "text": "So"}
    stream = streams(
        fake.started(),
        fake.event("ping"),
        fake.block(0, "thinking", *thoughts),
        fake.event("of_next_year", message=1, delta="x", usage=[], content_block=None),
        fake.event("content_block_start", index=1, content_block=begun),
        fake.said(" it is.", number=2),
        fake.ended(),
    )
    async with upstream.behaving(stream):
        *deltas, finish = await heard(chat, STREAMED)
    assert deltas == [Delta(""), Delta("So"), Delta(" it is.")]
    assert isinstance(finish, Finish)


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_a_stream_may_be_cut_anywhere(
    chat: AnthropicChat, upstream: Upstream, size: int
) -> None:
    pieces = ["Потому ", "что 🦆 ", "так."]
    whole = (fake.started() + fake.said(*pieces) + fake.ended()).encode()

    async def drip(wire: Wire, received: Received) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        await wire.send(head, "Transfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(whole), size):
            part = whole[start : start + size]
            await wire.send(f"{len(part):x}\r\n", part, "\r\n")
            await asyncio.sleep(0)
        await wire.send("0\r\n\r\n")

    async with upstream.behaving(drip):
        *deltas, finish = await heard(chat, STREAMED)
    assert deltas == [Delta(piece) for piece in pieces]
    assert finish == Finish(fake.MODEL, "stop", Usage(12, 34))


async def test_a_connection_is_kept_after_a_stream(
    chat: AnthropicChat, upstream: Upstream
) -> None:
    before = upstream.connections
    async with upstream.behaving(fake.answers):
        for _ in range(3):
            await heard(chat, STREAMED)
    assert upstream.connections == before + 1


REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "refusal": "filtered",
    "tool_use": "other",
    "pause_turn": "other",
    "model_context_window_exceeded": "other",
    "of_next_year": "other",
}


@pytest.mark.parametrize(("said", "told"), REASONS.items())
async def test_U29_every_stop_reason_is_one_of_ours(
    chat: AnthropicChat, upstream: Upstream, said: str, told: FinishReason
) -> None:
    async with upstream.behaving(responds(fake.message(fake.text("So."), reason=said))):
        plain = await heard(chat, PLAIN)
    stream = streams(fake.started(), fake.said("So."), fake.ended(said))
    async with upstream.behaving(stream):
        streamed = await heard(chat, STREAMED)
    assert plain == streamed == [Delta("So."), Finish(fake.MODEL, told, Usage(12, 34))]


USAGES: dict[str, tuple[Any, Usage]] = {
    "none": (None, Usage()),
    "half": ({"output_tokens": 5}, Usage(None, 5)),
    "in_words": ({"input_tokens": "many", "output_tokens": 5}, Usage(None, 5)),
    "of_another_kind": ([1, 2], Usage()),
}


@pytest.mark.parametrize(("said", "told"), USAGES.values(), ids=USAGES)
async def test_U29_an_answer_does_without_its_usage(
    chat: AnthropicChat, upstream: Upstream, said: Any, told: Usage
) -> None:
    body = fake.message(fake.text("So."), usage=said)
    async with upstream.behaving(responds(body)):
        plain = await heard(chat, PLAIN)
    begun = fake.event("message_start", message=fake.message(usage=said))
    stream = streams(begun, fake.said("So."), fake.ended(usage=said))
    async with upstream.behaving(stream):
        streamed = await heard(chat, STREAMED)
    assert plain == streamed == [Delta("So."), Finish(fake.MODEL, "stop", told)]


# What goes wrong.

STATUSES: dict[str, tuple[str, type[ProviderError]]] = {
    "U15_invalid_request_error": ("400 Bad Request", ProviderRejected),
    "U15_request_too_large": ("413 Content Too Large", ProviderRejected),
    "U16_authentication_error": ("401 Unauthorized", ProviderAuth),
    "U16_permission_error": ("403 Forbidden", ProviderAuth),
    "U17_not_found_error": ("404 Not Found", ProviderMisconfigured),
    "U18_api_error": ("500 Internal Server Error", ProviderFailed),
    "U18_timeout_error": ("504 Gateway Timeout", ProviderFailed),
    "U18_overloaded_error": ("529 Overloaded", ProviderOverloaded),
    "U19_rate_limit_error": ("429 Too Many Requests", ProviderRateLimited),
}


@pytest.mark.parametrize("request_", [PLAIN, STREAMED], ids=["plain", "streamed"])
@pytest.mark.parametrize("kind", STATUSES)
async def test_a_refusal_is_an_error_of_ours_without_its_words(
    chat: AnthropicChat, upstream: Upstream, kind: str, request_: ChatRequest
) -> None:
    status, expected = STATUSES[kind]
    body = fake.error(kind[4:], f"{SAID} {KEY}")
    refusal = responds(body, status=status, headers="Retry-After: 7\r\n")
    async with upstream.behaving(refusal):
        with pytest.raises(expected) as raised:
            await heard(chat, request_)
    assert raised.value.upstream_status == int(status[:3])
    assert raised.value.told_wait == (7 if status[:3] in ("429", "529") else None)
    assert_tells_nothing(raised.value)


def assert_tells_nothing(error: BaseException) -> None:
    told = f"{error!r} {error} {vars(error)} {error.__cause__!r}"
    assert SAID not in told
    assert KEY not in told


BEGUN = fake.started() + fake.said("Half an ans")
BROKEN = {
    "U23_ends_without_message_stop": [BEGUN],
    "U23_ends_after_message_delta": [BEGUN, fake.ended().split("event: message_s")[0]],
    "U24_an_error_within": [BEGUN, fake.failed("overloaded_error", SAID), fake.ended()],
    "U24_an_error_first": [fake.failed("overloaded_error", SAID), fake.ended()],
}


@pytest.mark.parametrize("parts", BROKEN.values(), ids=BROKEN)
async def test_a_stream_that_does_not_reach_its_end_is_broken(
    chat: AnthropicChat, upstream: Upstream, parts: list[str]
) -> None:
    deltas: list[Delta | Finish] = []
    async with upstream.behaving(streams(*parts)):
        with pytest.raises(ProviderStreamBroken) as raised:
            async for event in chat.stream(STREAMED):
                deltas.append(event)
    assert deltas == ([Delta("Half an ans")] if BEGUN in parts else [])
    assert_tells_nothing(raised.value)


async def test_U22_a_stream_that_is_cut_is_broken(
    chat: AnthropicChat, upstream: Upstream
) -> None:
    async def cut(wire: Wire, received: Received) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        await wire.send(head, "Transfer-Encoding: chunked\r\n\r\n", "5000\r\n", BEGUN)
        wire.writer.close()

    async with upstream.behaving(cut):
        with pytest.raises(ProviderStreamBroken):
            await heard(chat, STREAMED)


NO_ANSWERS = {
    "U13_an_empty_object": {},
    "U13_no_content": fake.message() | {"content": None},
    "U13_content_of_another_kind": fake.message() | {"content": 5},
    "U13_blocks_of_another_kind": fake.message() | {"content": ["text"]},
    "U13_text_of_another_kind": fake.message({"type": "text", "text": 5}),
    "U14_200_with_an_error_in_it": fake.error("api_error", SAID),
}


@pytest.mark.parametrize("body", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_what_is_no_message_is_a_bad_response(
    chat: AnthropicChat, upstream: Upstream, body: dict[str, Any]
) -> None:
    async with upstream.behaving(responds(body)):
        with pytest.raises(ProviderBadResponse) as raised:
            await heard(chat, PLAIN)
    assert_tells_nothing(raised.value)


NO_EVENTS = {
    "no_object": "data: 5\n\n",
    "no_type": "data: {}\n\n",
    "no_delta": fake.event("content_block_delta", index=0),
    "text_of_another_kind": fake.block(0, "text", {"type": "text_delta", "text": 5}),
    "a_start_without_message": fake.event("message_start"),
}


@pytest.mark.parametrize("body", NO_EVENTS.values(), ids=NO_EVENTS)
async def test_what_is_no_event_is_a_bad_response(
    chat: AnthropicChat, upstream: Upstream, body: str
) -> None:
    async with upstream.behaving(streams(body, fake.ended())):
        with pytest.raises(ProviderBadResponse):
            await heard(chat, STREAMED)


async def test_U36_a_stream_that_is_cancelled_closes_the_connection(
    chat: AnthropicChat, upstream: Upstream
) -> None:
    gone = asyncio.Event()

    async def stall(wire: Wire, received: Received) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        await wire.send(head, BEGUN)
        await wire.closed_by_client()
        gone.set()

    async with upstream.behaving(stall):
        hearing = asyncio.create_task(heard(chat, STREAMED))
        await upstream.asked()
        hearing.cancel()
        async with asyncio.timeout(1):
            await gone.wait()


# Through the whole service.


@pytest.fixture(scope="module")
async def database_url(databases: Databases) -> str:
    """No statement differs by the provider: one kind of database will do."""
    return await databases.migrated("sqlite")


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, upstream: Upstream
) -> AsyncIterator[Running]:
    table = (
        f'type = "anthropic"\nbase_url = "{upstream.base_url}"\nmodel = "claude-x"\n'
        f'api_key = "{KEY}"\nbreaker_calls = 0'
    )
    file = tmp_path_factory.mktemp("service") / "app.toml"
    write_config(
        file,
        database_url,
        llm='system_prompt = "Be brief."\nmax_tokens = 77',
        providers__claude=table,
    )
    async with served(file, BY_CLAUDE) as (found, _):
        yield found
        await assert_no_secret_in(found)


async def test_a_question_is_answered(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    async with upstream.behaving(fake.answers):
        answer = await api.ask(ada, "Why?")
        assert answer.status_code == 201, answer.text
        (received,) = upstream.requests
    question = answer.json()
    assert question["answer"] == "Answer to: Why?"
    assert (question["provider"], question["model"]) == ("claude", fake.MODEL)
    assert question["usage"] == {"prompt_tokens": 12, "completion_tokens": 34}
    assert question["finish_reason"] == "stop"
    assert (received.json["system"], received.json["max_tokens"]) == ("Be brief.", 77)


async def test_a_question_is_answered_piece_by_piece(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    async with upstream.behaving(fake.answers):
        events = await api.read(ada, "Why?")
    assert text_of(events) == "Answer to: Why?"
    name, question = events[-1]
    assert name == "done"
    assert question["answer"] == "Answer to: Why?"
    assert question["usage"] == {"prompt_tokens": 12, "completion_tokens": 34}


async def test_U23_a_stream_without_message_stop_is_told_as_broken(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    async with upstream.behaving(streams(BEGUN)):
        events = await api.read(ada, "Why?")
    assert text_of(events) == "Half an ans"
    name, problem = events[-1]
    assert (name, problem["code"]) == ("error", "provider_stream_broken")


async def test_U16_a_key_that_is_refused_is_not_told(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    body = fake.error("authentication_error", f"{SAID} {KEY}")
    async with upstream.behaving(responds(body, status="401 Unauthorized")):
        answer = await api.ask(ada, "Why?")
        assert len(upstream.requests) == 1
    await assert_failed(api, ada, answer, 502, "provider_auth")
