"""GigaChat: the token that opens it, and that it speaks chat completions."""

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from core.errors import StartRefused
from core.settings import load_settings
from core.testing import Running
from providers.gigachat import GigaChat, GigaChatOptions, open_gigachat
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
    ProviderStreamBroken,
    ProviderTimeout,
    ProviderTls,
    Usage,
)
from tests.conftest import Databases, assert_no_secret_in, served
from tests.support.api import Account, Api, text_of
from tests.support.certificates import Authority
from tests.support.config import write_config
from tests.support.faults import SAID, assert_failed
from tests.support.gigachat import LIFETIME_SECONDS, MODEL, TOKEN, Sber
from tests.support.upstream import (
    KEY,
    Received,
    Upstream,
    Wire,
    upstream_of_its_own,
)

BY_GIGA = {"VOPROS_LLM__PROVIDER": "giga"}
PLAIN = ChatRequest("Why?")
STREAMED = ChatRequest("Why?", streamed=True)
ANSWER = Delta("Answer to: Why?")


class Clock:
    """Stands still until it is set."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def sber(upstream: Upstream, clock: Clock) -> AsyncIterator[Sber]:
    """The vendor's side."""
    found = Sber(clock)
    async with upstream.behaving(found):
        yield found


def addresses(upstream: Upstream) -> dict[str, str]:
    root = upstream.base_url.removesuffix("/v1")
    return {"base_url": f"{root}/api/v1", "auth_url": f"{root}/api/v2/oauth"}


def opened(
    upstream: Upstream, clock: Clock, **more: Any
) -> AbstractAsyncContextManager[GigaChat]:
    table = {"type": "gigachat", "api_key": KEY} | addresses(upstream) | more
    return open_gigachat("giga", GigaChatOptions.model_validate(table), clock)


@pytest.fixture
async def chat(upstream: Upstream, sber: Sber, clock: Clock) -> AsyncIterator[GigaChat]:
    """The provider, without the rest of the service."""
    async with opened(upstream, clock) as found:
        yield found


async def heard(chat: GigaChat, request: ChatRequest = PLAIN) -> list[Delta | Finish]:
    return [event async for event in chat.stream(request)]


async def all_heard(chat: GigaChat, times: int) -> list[Any]:
    asking = (heard(chat) for _ in range(times))
    return await asyncio.gather(*asking, return_exceptions=True)


def assert_all_answered(outcomes: list[Any]) -> None:
    assert [outcome[0] for outcome in outcomes] == [ANSWER] * len(outcomes)


def assert_tells_nothing(error: BaseException) -> None:
    seen: BaseException | None = error
    while seen is not None:
        told = f"{seen!r} {seen} {vars(seen)}"
        assert not any(secret in told for secret in (KEY, TOKEN, SAID))
        seen = seen.__cause__ or seen.__context__


# What is asked, and what an answer is read as.


async def test_a_token_is_bought_and_used_as_the_reference_says(
    upstream: Upstream, sber: Sber, clock: Clock
) -> None:
    more = {"scope": "GIGACHAT_API_B2B", "model": "Max", "body": {"top_p": 0.5}}
    async with opened(upstream, clock, **more) as chat:
        await heard(chat, ChatRequest("Why?", "Be brief.", 0.5, 77))
        bought, asked = upstream.requests
    assert bought.head.startswith("POST /api/v2/oauth HTTP/1.1")
    assert bought.header("authorization") == f"Basic {KEY}"
    assert bought.header("content-type") == "application/x-www-form-urlencoded"
    assert uuid.UUID(bought.header("rquid")).version == 4
    assert bought.body == b"scope=GIGACHAT_API_B2B"
    assert asked.head.startswith("POST /api/v1/chat/completions HTTP/1.1")
    assert asked.header("authorization") == f"Bearer {sber.sold[0]}"
    assert KEY not in asked.head
    assert asked.json == {
        "model": "Max",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
        ],
        "temperature": 0.5,
        "max_tokens": 77,
        "top_p": 0.5,
    }


async def test_a_stream_and_a_whole_answer_are_read(chat: GigaChat) -> None:
    finish = Finish(MODEL, "stop", Usage(12, 34))
    assert await heard(chat) == [ANSWER, finish]
    *deltas, end = await heard(chat, STREAMED)
    pieces = [delta.text for delta in deltas if isinstance(delta, Delta)]
    assert len(pieces) > 1
    assert ("".join(pieces), end) == (ANSWER.text, finish)


async def test_the_models_are_listed(chat: GigaChat) -> None:
    assert await chat.models() == ("GigaChat-2", "Max")


REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "blacklist": "filtered",
    "function_call": "other",
    "error": "other",
}


@pytest.mark.parametrize(("said", "told"), REASONS.items())
@pytest.mark.parametrize("request_", [PLAIN, STREAMED], ids=["plain", "streamed"])
async def test_U29_every_finish_reason_is_one_of_ours(
    chat: GigaChat,
    sber: Sber,
    said: str,
    told: FinishReason,
    request_: ChatRequest,
) -> None:
    sber.reason = said
    events = await heard(chat, request_)
    assert events[-1] == Finish(MODEL, told, Usage(12, 34))


async def test_U29_a_stream_does_without_its_usage(chat: GigaChat, sber: Sber) -> None:
    sber.usage = None
    assert (await heard(chat, STREAMED))[-1] == Finish(MODEL, "stop", Usage())


async def test_U23_a_stream_that_does_not_reach_its_end_is_broken(
    chat: GigaChat, upstream: Upstream, sber: Sber
) -> None:
    await heard(chat)

    async def half(wire: Wire, received: Received) -> None:
        body = 'data: {"choices": [{"delta": {"content": "Half"}, "index": 0}]}\n\n'
        await wire.respond(body, content_type="text/event-stream")

    async with upstream.behaving(half):
        with pytest.raises(ProviderStreamBroken):
            await heard(chat, STREAMED)


# The token.


async def test_20_parallel_questions_buy_one_token(
    chat: GigaChat, upstream: Upstream, sber: Sber
) -> None:
    sber.may_sell.clear()
    asking = asyncio.create_task(all_heard(chat, 20))
    await upstream.asked()
    sber.may_sell.set()
    assert_all_answered(await asking)
    assert len(sber.sold) == 1
    assert len(upstream.requests) == 21


async def test_a_token_is_renewed_before_it_ends_once_for_all(
    chat: GigaChat, sber: Sber, clock: Clock
) -> None:
    await heard(chat)
    clock.now += LIFETIME_SECONDS - 61
    assert_all_answered(await all_heard(chat, 5))
    assert len(sber.sold) == 1
    clock.now += 2
    assert_all_answered(await all_heard(chat, 20))
    assert len(sber.sold) == 2
    clock.now += LIFETIME_SECONDS - 61
    await heard(chat)
    assert len(sber.sold) == 2


async def test_an_end_that_is_told_in_seconds_is_understood(
    upstream: Upstream, sber: Sber, clock: Clock
) -> None:
    async def seconds(wire: Wire, received: Received) -> None:
        if "oauth" not in received.head:
            await sber(wire, received)
            return
        sber.valid.add(TOKEN)
        await wire.respond({"access_token": TOKEN, "expires_at": int(clock.now) + 1800})

    async with upstream.behaving(seconds), opened(upstream, clock) as chat:
        for _ in range(2):
            await heard(chat)
        assert ["oauth" in r.head for r in upstream.requests] == [True, False, False]


async def test_a_refused_token_is_replaced_and_the_question_asked_once_more(
    chat: GigaChat, upstream: Upstream, sber: Sber
) -> None:
    await heard(chat)
    sber.valid.clear()
    upstream.requests.clear()
    events = await heard(chat, STREAMED)
    assert isinstance(events[-1], Finish)
    tokens = [received.header("authorization") for received in upstream.requests]
    assert tokens == [
        f"Bearer {sber.sold[0]}",
        f"Basic {KEY}",
        f"Bearer {sber.sold[1]}",
    ]


async def test_20_parallel_questions_replace_a_refused_token_once(
    chat: GigaChat, sber: Sber
) -> None:
    await heard(chat)
    sber.valid.clear()
    assert_all_answered(await all_heard(chat, 20))
    assert len(sber.sold) == 2


async def test_a_late_refusal_does_not_cost_the_new_token(
    chat: GigaChat, upstream: Upstream, sber: Sber
) -> None:
    await heard(chat)
    sber.valid.clear()
    may_refuse = asyncio.Event()

    async def refuse_one_late(wire: Wire, received: Received) -> None:
        if len(upstream.requests) == 1:
            await may_refuse.wait()
        await sber(wire, received)

    async with upstream.behaving(refuse_one_late):
        late = asyncio.create_task(heard(chat))
        await upstream.asked()
        assert (await heard(chat))[0] == ANSWER
        may_refuse.set()
        assert (await late)[0] == ANSWER
    assert len(sber.sold) == 2


async def test_U16_a_new_token_that_is_refused_too_is_the_end(
    chat: GigaChat, upstream: Upstream, sber: Sber
) -> None:
    async def refuse(wire: Wire, received: Received) -> None:
        sber.valid.clear()
        await sber(wire, received)

    async with upstream.behaving(refuse):
        with pytest.raises(ProviderAuth) as raised:
            await heard(chat)
        assert len(upstream.requests) == 4
    assert raised.value.upstream_status == 401
    assert_tells_nothing(raised.value)


async def test_U16_what_is_forbidden_is_not_asked_again(
    chat: GigaChat, upstream: Upstream
) -> None:
    await heard(chat)

    async def forbid(wire: Wire, received: Received) -> None:
        await wire.respond(f"{KEY} {TOKEN} {SAID}", status="403 Forbidden")

    async with upstream.behaving(forbid):
        with pytest.raises(ProviderAuth) as raised:
            await heard(chat)
        assert len(upstream.requests) == 1
    assert_tells_nothing(raised.value)


async def test_who_stops_waiting_for_a_token_does_not_stop_it_for_others(
    chat: GigaChat, upstream: Upstream, sber: Sber
) -> None:
    sber.may_sell.clear()
    first = asyncio.create_task(heard(chat))
    second = asyncio.create_task(heard(chat))
    await upstream.asked()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    sber.may_sell.set()
    assert (await second)[0] == ANSWER
    assert len(sber.sold) == 1


async def test_a_token_that_is_not_sold_fails_those_who_wait_and_the_next_tries_again(
    chat: GigaChat, upstream: Upstream, sber: Sber
) -> None:
    sber.may_sell.clear()
    sber.refusal = "500 Internal Server Error"
    asking = asyncio.create_task(all_heard(chat, 5))
    await upstream.asked()
    sber.may_sell.set()
    outcomes = await asking
    assert [type(outcome) for outcome in outcomes] == [ProviderFailed] * 5
    assert len(upstream.requests) == 1
    for outcome in outcomes:
        assert_tells_nothing(outcome)
    sber.refusal = None
    assert (await heard(chat))[0] == ANSWER


async def test_a_token_that_nobody_waits_for_any_more_may_fail_unheard(
    chat: GigaChat, upstream: Upstream, sber: Sber, clock: Clock
) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    await heard(chat)
    clock.now += LIFETIME_SECONDS
    sber.may_sell.clear()
    sber.refusal = "500 Internal Server Error"
    others = asyncio.all_tasks()
    asking = asyncio.create_task(heard(chat))
    await upstream.asked(3)
    asking.cancel()
    await asyncio.wait([asking])
    left = asyncio.all_tasks() - others
    sber.may_sell.set()
    await asyncio.wait(left)
    del left, asking
    gc.collect()
    loop.set_exception_handler(None)
    assert complaints == []


async def test_U02_a_seller_that_says_nothing_is_a_timeout_and_asked_again(
    upstream: Upstream, sber: Sber, clock: Clock
) -> None:
    sber.may_sell.clear()
    async with opened(upstream, clock, auth_seconds=0.2) as chat:
        with pytest.raises(ProviderTimeout):
            await heard(chat)
        sber.may_sell.set()
        assert (await heard(chat))[0] == ANSWER


async def test_closing_does_not_wait_for_a_token(
    upstream: Upstream, sber: Sber, clock: Clock
) -> None:
    sber.may_sell.clear()
    async with asyncio.timeout(60), opened(upstream, clock) as chat:
        asking = asyncio.create_task(heard(chat))
        await upstream.asked()
        asking.cancel()
    assert sber.sold == []


REFUSALS: dict[str, tuple[str, type[ProviderError]]] = {
    "U15_a_key_that_is_none": ("400 Bad Request", ProviderAuth),
    "U16_a_wrong_key": ("401 Unauthorized", ProviderAuth),
    "U17_elsewhere": ("404 Not Found", ProviderMisconfigured),
    "U18_500": ("500 Internal Server Error", ProviderFailed),
    "U18_503": ("503 Service Unavailable", ProviderOverloaded),
    "U19_too_many_tokens": ("429 Too Many Requests", ProviderRateLimited),
}


@pytest.mark.parametrize(("status", "kind"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_of_the_seller_is_no_fault_of_the_question(
    chat: GigaChat,
    upstream: Upstream,
    sber: Sber,
    status: str,
    kind: type[ProviderError],
) -> None:
    sber.refusal = status
    with pytest.raises(kind) as raised:
        await heard(chat)
    assert raised.value.upstream_status == int(status[:3])
    assert len(upstream.requests) == 1
    assert_tells_nothing(raised.value)


LATER = 4_000_000_000_000
NO_TOKENS: dict[str, Any] = {
    "nothing": {},
    "a_list": "[]",
    "no_end": {"access_token": TOKEN},
    "an_end_in_words": {"access_token": TOKEN, "expires_at": "soon"},
    "no_token": {"expires_at": LATER},
    "an_empty_token": {"access_token": "", "expires_at": LATER},
    "a_token_of_two_lines": {
        "access_token": f"{TOKEN}\r\nX-A: b",
        "expires_at": LATER,
    },
}


@pytest.mark.parametrize("body", NO_TOKENS.values(), ids=NO_TOKENS)
async def test_what_is_no_token_is_a_bad_response(
    chat: GigaChat, upstream: Upstream, body: Any
) -> None:
    async def sell(wire: Wire, received: Received) -> None:
        await wire.respond(body)

    async with upstream.behaving(sell):
        with pytest.raises(ProviderBadResponse) as raised:
            await heard(chat)
        assert len(upstream.requests) == 1
    assert_tells_nothing(raised.value)


# Its own root certificate, and its options.


@asynccontextmanager
async def behind_tls(authority: Authority, sber: Sber) -> AsyncIterator[Upstream]:
    tls = authority.issue("IP:127.0.0.1")
    async with upstream_of_its_own(tls) as found, found.behaving(sber):
        yield found


async def test_U21_the_root_certificate_of_ca_file_is_trusted(
    tmp_path: Path, clock: Clock
) -> None:
    authority, sber = Authority(tmp_path), Sber(clock)
    async with (
        behind_tls(authority, sber) as upstream,
        opened(upstream, clock, ca_file=authority.file) as chat,
    ):
        assert (await heard(chat))[0] == ANSWER


async def test_U21_without_ca_file_nothing_is_sent(
    tmp_path: Path, clock: Clock
) -> None:
    sber = Sber(clock)
    async with behind_tls(Authority(tmp_path), sber) as upstream:
        async with opened(upstream, clock) as chat:
            with pytest.raises(ProviderTls):
                await heard(chat)
        assert upstream.requests == []


BAD_OPTIONS = {
    "no_key": ("", "api_key: this key is needed"),
    "a_key_of_two_lines": (f'api_key = "{KEY}\\n"', "printable ASCII"),
    "a_token_in_clear": (
        f'api_key = "{KEY}"\nauth_url = "http://10.0.0.1/oauth"',
        "auth_url: must be https:// where a key is sent",
    ),
    "a_question_in_clear": (
        f'api_key = "{KEY}"\nbase_url = "http://10.0.0.1/v1"',
        "base_url must be https:// where a key is sent",
    ),
    "a_password_in_the_address": (
        f'api_key = "k"\nauth_url = "https://u:{KEY}@sber.example/oauth"',
        "auth_url: must not hold a password, a query or a fragment",
    ),
    "no_verification": (f'api_key = "{KEY}"\nverify = false', "there is no such key"),
}


@pytest.mark.parametrize(("lines", "told"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_refuses_the_start(tmp_path: Path, lines: str, told: str) -> None:
    table = f'type = "gigachat"\n{lines}'
    tables = {"providers__giga": table}
    file = write_config(tmp_path / "app.toml", "sqlite:///x.db", **tables)
    with pytest.raises(StartRefused) as refused:
        load_settings(file, BY_GIGA)
    (line,) = str(refused.value).splitlines()
    assert "[providers.giga]" in line
    assert told in line
    assert KEY not in line


# Through the whole service.


@pytest.fixture(scope="module")
async def database_url(databases: Databases) -> str:
    """No statement differs by the provider: one kind of database will do."""
    return await databases.migrated("sqlite")


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, upstream: Upstream
) -> AsyncIterator[Running]:
    lines = {"type": "gigachat", "api_key": KEY} | addresses(upstream)
    table = "\n".join(f'{key} = "{value}"' for key, value in lines.items())
    file = tmp_path_factory.mktemp("service") / "app.toml"
    table += "\nbreaker_calls = 0"
    write_config(file, database_url, providers__giga=table)
    async with served(file, BY_GIGA) as (found, _):
        yield found
        await assert_no_secret_in(found)


async def test_questions_are_answered_at_once_and_piece_by_piece(
    api: Api, ada: Account, upstream: Upstream, sber: Sber
) -> None:
    answer = await api.ask(ada, "Why?")
    assert answer.status_code == 201, answer.text
    events = await api.read(ada, "Why?")
    assert text_of(events) == ANSWER.text
    name, streamed = events[-1]
    assert name == "done"
    for question in (answer.json(), streamed):
        assert question["answer"] == ANSWER.text
        assert (question["provider"], question["model"]) == ("giga", MODEL)
        assert question["usage"] == {"prompt_tokens": 12, "completion_tokens": 34}


async def test_U16_neither_key_nor_token_is_told(
    api: Api, ada: Account, upstream: Upstream, sber: Sber
) -> None:
    async def refuse(wire: Wire, received: Received) -> None:
        if "oauth" in received.head:
            await sber(wire, received)
        else:
            words = f"{SAID} {received.header('authorization')} {KEY}"
            await wire.respond({"message": words}, status="401 Unauthorized")

    async with upstream.behaving(refuse):
        answer = await api.ask(ada, "Why?")
    await assert_failed(api, ada, answer, 502, "provider_auth")
    assert TOKEN not in answer.text
