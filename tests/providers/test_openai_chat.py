"""`openai` without an application around it: its models, and its errors."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from providers.http import open_endpoint
from providers.openai_chat import OpenAIChat, OpenAIOptions, open_openai
from providers.public import (
    AnswerTooLarge,
    ChatRequest,
    Delta,
    Finish,
    ProviderAuth,
    ProviderBadResponse,
    ProviderError,
    ProviderFailed,
    ProviderMisconfigured,
    ProviderStreamBroken,
    ProviderUnreachable,
)
from tests.support.faults import SAID
from tests.support.upstream import KEY, Behaviour, Received, Upstream, Wire, answers


def options_for(upstream: Upstream) -> OpenAIOptions:
    return OpenAIOptions(
        type="openai",
        base_url=upstream.base_url,
        model="fake",
        api_key=SecretStr(KEY),
        query={"api-version": SecretStr("v1")},
    )


@pytest.fixture
async def chat(upstream: Upstream) -> AsyncIterator[OpenAIChat]:
    async with open_openai("main", options_for(upstream)) as found:
        yield found


def responds(body: Any = "", **how: Any) -> Behaviour:
    async def behave(wire: Wire, received: Received) -> None:
        await wire.respond(body, **how)

    return behave


def listing(*models: Any) -> dict[str, Any]:
    return {"object": "list", "data": list(models)}


async def test_the_models_are_what_the_backend_lists(
    chat: OpenAIChat, upstream: Upstream
) -> None:
    models = listing({"id": "small", "owned_by": "us"}, {"id": "большая"})
    async with upstream.behaving(responds(models)):
        assert await chat.models() == ("small", "большая")
    (received,) = upstream.requests
    assert received.head.startswith("GET /v1/models?api-version=v1 HTTP/1.1\r\n")
    assert received.header("authorization") == f"Bearer {KEY}"
    assert received.body == b""


async def test_a_backend_may_have_no_models(
    chat: OpenAIChat, upstream: Upstream
) -> None:
    async with upstream.behaving(responds(listing())):
        assert await chat.models() == ()


NOT_LISTED: dict[str, tuple[Behaviour, type[ProviderError]]] = {
    "401": (responds({"error": SAID}, status="401 No"), ProviderAuth),
    "404": (responds({"error": SAID}, status="404 No"), ProviderMisconfigured),
    "500": (responds({"error": SAID}, status="500 No"), ProviderFailed),
    "html": (responds(f"<p>{SAID}", content_type="text/html"), ProviderBadResponse),
    "no_json": (responds(SAID), ProviderBadResponse),
    "null": (responds("null"), ProviderBadResponse),
    "an_error": (responds({"error": SAID}), ProviderBadResponse),
    "a_list": (responds('["small"]'), ProviderBadResponse),
    "names_only": (responds({"data": ["small"]}), ProviderBadResponse),
    "an_object": (responds({"data": {"id": "small"}}), ProviderBadResponse),
    "a_model_without_name": (responds(listing({})), ProviderBadResponse),
    "a_name_that_is_none": (responds(listing({"id": None})), ProviderBadResponse),
    "too_much": (responds(listing({"id": "m" * 2**20})), AnswerTooLarge),
}


@pytest.mark.parametrize(
    ("behaviour", "kind"), NOT_LISTED.values(), ids=NOT_LISTED.keys()
)
async def test_what_is_no_list_of_models_is_an_error_of_ours(
    chat: OpenAIChat,
    upstream: Upstream,
    behaviour: Behaviour,
    kind: type[ProviderError],
) -> None:
    async with upstream.behaving(behaviour):
        with pytest.raises(kind) as raised:
            await chat.models()
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    for secret in (SAID, KEY):
        assert secret not in f"{raised.value!r} {raised.value.members!r}"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("", ProviderUnreachable),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", ProviderBadResponse),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            "Content-Length: 9\r\n\r\n[",
            ProviderStreamBroken,
        ),
    ],
    ids=["closed", "closed_after_its_head", "cut"],
)
async def test_a_connection_that_dies_is_an_error_of_ours(
    chat: OpenAIChat, upstream: Upstream, head: str, kind: type[ProviderError]
) -> None:
    async def die(wire: Wire, received: Received) -> None:
        await wire.send(head)
        wire.writer.close()

    async with upstream.behaving(die):
        with pytest.raises(kind):
            await chat.models()


@pytest.mark.parametrize("seconds", [0, 1.1], ids=["at_once", "after_a_while"])
async def test_U06_a_kept_connection_is_replaced_unless_the_backend_has_thought(
    chat: OpenAIChat, upstream: Upstream, seconds: float
) -> None:
    """What may have been paid for is a try like any other, for `failover` to count."""

    async def die_of_the_second(wire: Wire, received: Received) -> None:
        if len(upstream.requests) != 2:
            await answers(wire, received)
            return
        await asyncio.sleep(seconds)
        wire.writer.close()

    async def ask() -> list[Delta | Finish]:
        return [event async for event in chat.stream(ChatRequest("Why?"))]

    before = upstream.connections
    async with upstream.behaving(die_of_the_second):
        first = await ask()
        if seconds:
            with pytest.raises(ProviderUnreachable):
                await ask()
        else:
            assert await ask() == first
    asked = (len(upstream.requests), upstream.connections - before)
    assert asked == ((2, 1) if seconds else (3, 2))


async def test_a_mistake_of_a_plugin_is_not_taken_for_the_backends(
    upstream: Upstream,
) -> None:
    """A ValueError while a response is read says nothing about the address."""
    async with (
        upstream.behaving(responds({})),
        open_endpoint(options_for(upstream)) as endpoint,
    ):
        with pytest.raises(ValueError, match="of a plugin"):
            async with endpoint.get("/models"):
                raise ValueError("of a plugin")
