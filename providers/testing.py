"""The suite that every provider passes, ours or a stranger's.

A provider's test file inherits what fits it and says how it is opened: `ProviderSuite`
when it asks nobody, `BackendSuite` when it asks a backend over HTTP, `StreamingSuite`
when that can also stream. What a backend does not have (it tells no usage, say) its
suite takes out: `test_usage_that_is_not_told_is_none = None`.

pytest finds the inherited tests and needs no plugin: each has an event loop of its own.
"""

import asyncio
import json
import random
import traceback
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import wraps
from typing import Any, TypeVar, cast

from providers.fake import Behaviour, FakeBackend, Received, Wire
from providers.public import (
    FINISH_REASONS,
    ChatModel,
    ChatRequest,
    Delta,
    Finish,
    FinishReason,
    OffersModels,
    ProviderAuth,
    ProviderError,
    ProviderFailed,
    ProviderMisconfigured,
    ProviderOptions,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStreamBroken,
    ProviderType,
    ProviderUnreachable,
    Usage,
)
from providers.registry import type_named

KEY = "canary-provider-key-7f3a91"
"""What a provider under test is given as its key. It must come out nowhere."""
_PATIENCE_SECONDS = 30.0
_AT_ONCE_SECONDS = 1.0
_NOWHERE = "http://127.0.0.1:9"
_CUTS = 100
_COUNTED = Usage(12, 34)
_KINDS: dict[str, type[ProviderError]] = {
    "400 Bad Request": ProviderRejected,
    "401 Unauthorized": ProviderAuth,
    "403 Forbidden": ProviderAuth,
    "404 Not Found": ProviderMisconfigured,
    "500 Internal Server Error": ProviderFailed,
    "503 Service Unavailable": ProviderOverloaded,
}


_S = TypeVar("_S", bound="ProviderSuite")


def _check(check: Callable[[_S], Coroutine[Any, Any, None]]) -> Callable[[_S], None]:
    """An ordinary function for pytest, with a loop of its own and an end."""

    async def bounded(suite: _S) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await check(suite)

    @wraps(check)
    def test(self: _S) -> None:
        asyncio.run(bounded(self))

    return test


@dataclass(frozen=True)
class Heard:
    """All that a provider said in reply to one question."""

    text: str
    finish: Finish


async def hear(model: ChatModel, request: ChatRequest) -> Heard:
    """Read an answer to its end.

    Raises what the provider raises, and AssertionError for what is no answer.
    """
    async with aclosing(stream_of(model, request)) as stream:
        events: list[Any] = [event async for event in stream]
    assert events and isinstance(events[-1], Finish), "the last event is no Finish"
    *deltas, finish = events
    for delta in deltas:
        assert isinstance(delta, Delta), f"{type(delta).__name__} before the Finish"
        assert isinstance(delta.text, str), "a Delta without text"
    assert isinstance(finish.model, str) and finish.model, "a Finish without a model"
    assert finish.reason in FINISH_REASONS, f"a Finish for no reason: {finish.reason}"
    return Heard("".join(delta.text for delta in deltas), finish)


def stream_of(
    model: ChatModel, request: ChatRequest
) -> AsyncGenerator[Delta | Finish, None]:
    """A stream that can be closed early, as every provider's must be."""
    stream = model.stream(request)
    assert hasattr(stream, "aclose"), "the stream cannot be closed early"
    return cast(AsyncGenerator[Delta | Finish, None], stream)


class ProviderSuite:
    """For every provider, also one that asks nobody."""

    question = "What is the answer?"
    """One that it has an answer to."""

    def table(self, url: str, key: str) -> dict[str, Any]:
        """Its table in the configuration file, with its `type`.

        Its backend listens at `url`, which has no path, and is to be told `key`. A
        provider without a backend takes no notice of them.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self, url: str, key: str) -> AsyncIterator[ChatModel]:
        """The provider of the table, found and opened as the application does it.

        Override it where no table says how to reach the fake backend.
        """
        kind, options = self._configured(url, key)
        async with kind.open("under-test", options) as model:
            yield model

    def _configured(self, url: str, key: str) -> tuple[ProviderType, ProviderOptions]:
        table = self.table(url, key)
        _, kind = type_named(table["type"])
        return kind, kind.options.model_validate(table)

    @asynccontextmanager
    async def answering(self, *, streamed: bool) -> AsyncIterator[ChatModel]:
        """The provider with nothing in its way; whether it is asked for streams."""
        async with self.opened(_NOWHERE, KEY) as model:
            yield model

    def asks(self, *, streamed: bool) -> ChatRequest:
        """The question."""
        return ChatRequest(self.question, streamed=streamed)

    @_check
    async def test_an_answer_is_text_and_then_one_finish(self) -> None:
        for streamed in (False, True):
            async with self.answering(streamed=streamed) as model:
                heard = await hear(model, self.asks(streamed=streamed))
            assert heard.text, "an answer without text"

    @_check
    async def test_who_stops_reading_early_spoils_nothing(self) -> None:
        async with self.answering(streamed=True) as model:
            stream = stream_of(model, self.asks(streamed=True))
            await anext(stream)
            async with asyncio.timeout(_AT_ONCE_SECONDS):
                await stream.aclose()
            assert (await hear(model, self.asks(streamed=True))).text

    @_check
    async def test_several_may_ask_at_once(self) -> None:
        async with self.answering(streamed=True) as model:
            asking = (hear(model, self.asks(streamed=True)) for _ in range(3))
            assert all(heard.text for heard in await asyncio.gather(*asking))

    @_check
    async def test_what_it_started_ends_with_it(self) -> None:
        before = asyncio.all_tasks()
        async with self.answering(streamed=False) as model:
            await hear(model, self.asks(streamed=False))
        await _let_read()
        left = [task.get_name() for task in asyncio.all_tasks() - before]
        assert not left, f"still running after it was closed: {left}"


@dataclass(frozen=True)
class Reply:
    """What a backend is to say, in whatever words its wire format has for it."""

    pieces: tuple[str, ...] = ("First piece, ", "deuxième, ", '\U0001f30d "\\\n.')
    reason: FinishReason = "stop"
    """It is "stop" or "length"."""
    usage: Usage | None = _COUNTED
    model: str = "model-of-the-backend"

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def as_json(value: Any) -> bytes:
    """JSON as backends write it."""
    return json.dumps(value, ensure_ascii=False).encode()


def sse(data: Any, name: str = "") -> bytes:
    """One server-sent event; its data is JSON unless it is text."""
    written = data.encode() if isinstance(data, str) else as_json(data)
    named = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (named, written)


class BackendSuite(ProviderSuite):
    """For a provider that asks a backend over HTTP."""

    whole_type = "application/json"

    def whole(self, reply: Reply) -> bytes:
        """The body of an answer to somebody who does not ask for a stream."""
        raise NotImplementedError

    def error(self, words: str) -> bytes:
        """The body of a refusal."""
        return as_json({"error": {"message": words}})

    def aside(self, received: Received) -> bytes | None:
        """JSON in reply to what is no question, to a request for a token say."""
        return None

    def answers(self, reply: Reply, *, streamed: bool) -> Behaviour:
        """A backend that says this."""

        async def answer(wire: Wire, received: Received) -> None:
            await wire.respond(self.whole(reply), content_type=self.whole_type)

        return answer

    def _meeting_questions(self, behaviour: Behaviour) -> Behaviour:
        async def behave(wire: Wire, received: Received) -> None:
            aside = self.aside(received)
            await (wire.respond(aside) if aside else behaviour(wire, received))

        return behave

    @asynccontextmanager
    async def backend(self, behaviour: Behaviour) -> AsyncIterator[FakeBackend]:
        """A backend that meets questions so."""
        fake = FakeBackend(self._meeting_questions(behaviour))
        await fake.start()
        try:
            yield fake
        finally:
            await fake.stop()

    @asynccontextmanager
    async def asking(self, behaviour: Behaviour) -> AsyncIterator[ChatModel]:
        """The provider, opened against such a backend."""
        async with (
            self.backend(behaviour) as backend,
            self.opened(backend.url, KEY) as model,
        ):
            yield model

    @asynccontextmanager
    async def answering(self, *, streamed: bool) -> AsyncIterator[ChatModel]:
        async with self.asking(self.answers(Reply(), streamed=streamed)) as model:
            yield model

    async def outcomes(
        self, *behaviours: Behaviour, streamed: bool = False
    ) -> list[Heard | ProviderError]:
        """What the provider makes of each. Any other exception than ours comes out."""
        outcomes: list[Heard | ProviderError] = []
        async with (
            self.backend(_sends()) as backend,
            self.opened(backend.url, KEY) as model,
        ):
            for behaviour in behaviours:
                backend.behaviour = self._meeting_questions(behaviour)
                try:
                    outcomes.append(await hear(model, self.asks(streamed=streamed)))
                except ProviderError as error:
                    assert_keeps_the_key(error)
                    outcomes.append(error)
        return outcomes

    async def assert_answers(
        self, *behaviours: Behaviour, reply: Reply | None = None, streamed: bool = False
    ) -> None:
        """The provider makes the reply of each, or of a backend that just says it."""
        said = reply or Reply()
        plain = self.answers(said, streamed=streamed)
        for heard in await self.outcomes(*behaviours or [plain], streamed=streamed):
            if isinstance(heard, ProviderError):
                raise heard
            assert heard.text == said.text, repr(heard.text)
            assert heard.finish.reason == said.reason, heard.finish
            assert heard.finish.usage == (said.usage or Usage()), heard.finish

    async def assert_refused(
        self,
        status: str,
        kind: type[ProviderError],
        headers: str = "",
        waits: Iterable[int | None] = (None,),
    ) -> None:
        """The provider says a backend's status by an error of this kind."""

        async def refuse(wire: Wire, received: Received) -> None:
            body = self.error(f"Words of the backend, which repeats {KEY}.")
            await wire.respond(body, status=status, headers=headers)

        for streamed in (False, True):
            (error,) = await self.outcomes(refuse, streamed=streamed)
            assert isinstance(error, kind), f"{status} is {type(error).__name__}"
            assert error.told_wait in waits, f"{headers!r} is {error.told_wait} s"

    @_check
    async def test_a_whole_answer(self) -> None:
        await self.assert_answers()

    @_check
    async def test_the_reason_of_the_end_is_told(self) -> None:
        for streamed in (False, True):
            await self.assert_answers(reply=Reply(reason="length"), streamed=streamed)

    @_check
    async def test_usage_that_is_not_told_is_none(self) -> None:
        for streamed in (False, True):
            await self.assert_answers(reply=Reply(usage=None), streamed=streamed)

    @_check
    async def test_what_is_asked_reaches_the_backend(self) -> None:
        for streamed in (False, True):
            asked = replace(self.asks(streamed=streamed), system_prompt="Be brief.")
            answers = self.answers(Reply(), streamed=streamed)
            async with self.backend(answers) as backend:
                async with self.opened(backend.url, KEY) as model:
                    await hear(model, asked)
                told = backend.requests[-1].body.decode()
            assert asked.content in told, "the question was not sent"
            assert asked.system_prompt in told, "the system prompt was not sent"

    @_check
    async def test_the_key_opens_the_backend(self) -> None:
        async with self.backend(self.answers(Reply(), streamed=False)) as backend:
            async with self.opened(backend.url, KEY) as model:
                await hear(model, self.asks(streamed=False))
            told = backend.requests[-1]
        assert KEY in f"{told.head} {told.body!r}", "asked without the key"

    @_check
    async def test_nobody_gets_the_answer_of_another(self) -> None:
        all_have_asked = asyncio.Barrier(5)

        async def answer(wire: Wire, received: Received) -> None:
            await all_have_asked.wait()
            said = received.body.decode()
            (mine,) = (n for n in range(5) if f"Number {n}?" in said)
            await self.answers(Reply((f"It is {mine}.",)), streamed=True)(
                wire, received
            )

        async with self.asking(answer) as model:
            questions = [ChatRequest(f"Number {n}?", streamed=True) for n in range(5)]
            heard = await asyncio.gather(*(hear(model, each) for each in questions))
        assert [each.text for each in heard] == [f"It is {n}." for n in range(5)]

    @_check
    async def test_a_rate_limit_tells_how_long_to_wait(self) -> None:
        moment = datetime.now(UTC) + timedelta(seconds=30)
        date = f"Retry-After: {format_datetime(moment, usegmt=True)}\r\n"
        for header, waits in (
            ("Retry-After: 7\r\n", {7}),
            (date, range(20, 32)),
            ("", {None}),
        ):
            status = "429 Too Many Requests"
            await self.assert_refused(status, ProviderRateLimited, header, waits)

    @_check
    async def test_a_status_is_told_by_the_kind_of_error(self) -> None:
        for status, kind in _KINDS.items():
            await self.assert_refused(status, kind)

    @_check
    async def test_a_backend_that_is_not_there_is_unreachable(self) -> None:
        async with self.backend(self.answers(Reply(), streamed=False)) as backend:
            url = backend.url
        async with self.opened(url, KEY) as model:
            try:
                await hear(model, self.asks(streamed=False))
            except ProviderUnreachable as error:
                assert_keeps_the_key(error)
            else:
                raise AssertionError("an answer of nobody")

    @_check
    async def test_garbage_is_an_error(self) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {self.whole_type}\r\n"
        chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n"
        bodies = (KEY, "{}", "[]", "null", "7", "[" * 100_000)
        garbage = [
            "",
            f"SSH-2.0-{KEY}\r\n",
            f"{chunked}zz{KEY}\r\n",
            f"{chunked}0\r\n\r\n",
            f"{head}X: {KEY * 1_000}\r\nContent-Length: 0\r\n\r\n",
            f"{head}Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n{KEY[:3]}",
            f"HTTP/1.1 302 Found\r\nLocation: /{KEY}\r\nContent-Length: 0\r\n\r\n",
            *(f"{head}Content-Length: {len(body)}\r\n\r\n{body}" for body in bodies),
        ]
        for streamed in (False, True):
            behaviours = [_sends(sent.encode()) for sent in garbage]
            outcomes = await self.outcomes(*behaviours, streamed=streamed)
            for sent, outcome in zip(garbage, outcomes, strict=True):
                assert isinstance(outcome, ProviderError), f"an answer: {sent[:200]!r}"

    @_check
    async def test_half_of_a_whole_answer_is_none(self) -> None:
        body = self.whole(Reply())
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {self.whole_type}\r\n".encode()
        behaviours = [
            _sends(b"%bContent-Length: %d\r\n\r\n%b" % (head, length, body[:end]))
            for end in _places(body)
            for length in (end, len(body))
        ]
        for outcome in await self.outcomes(*behaviours):
            _assert_not_half(outcome, Reply())

    @_check
    async def test_the_list_of_models_fails_in_the_same_words(self) -> None:
        async def refuse(wire: Wire, received: Received) -> None:
            await wire.respond(self.error(KEY), status="401 Unauthorized")

        async with self.asking(refuse) as model:
            if not isinstance(model, OffersModels):
                return
            try:
                await model.models()
            except ProviderAuth as error:
                assert_keeps_the_key(error)
            else:
                raise AssertionError("a list of models without credentials")

    @_check
    async def test_cancelling_hangs_up_on_the_backend(self) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {self.whole_type}\r\n".encode()
        half = b"%bContent-Length: 999\r\n\r\n%b" % (head, self.whole(Reply())[:20])
        for sent in (b"", head, half):
            for streamed in (False, True):
                stall = Stall(sent)
                async with self.asking(stall) as model:
                    await stall.cancel(hear(model, self.asks(streamed=streamed)))

    @_check
    async def test_no_connection_outlives_it(self) -> None:
        async with self.backend(self.answers(Reply(), streamed=False)) as backend:
            async with self.opened(backend.url, KEY) as model:
                await hear(model, self.asks(streamed=False))
            async with asyncio.timeout(_AT_ONCE_SECONDS):
                await backend.left()

    def test_its_options_do_not_show_the_key(self) -> None:
        _, options = self._configured(_NOWHERE, KEY)
        assert KEY not in repr(options), "a key is a SecretStr"


class StreamingSuite(BackendSuite):
    """For a provider whose backend also streams."""

    stream_type = "text/event-stream"

    def stream(self, reply: Reply) -> Iterable[bytes]:
        """The body of a streamed answer, each of the pieces in a part of its own."""
        raise NotImplementedError

    def answers(self, reply: Reply, *, streamed: bool) -> Behaviour:
        if not streamed:
            return super().answers(reply, streamed=False)
        return _sends(self._head, *map(_chunk, self.stream(reply)), _LAST_CHUNK)

    @property
    def _head(self) -> bytes:
        """Of a response whose body comes in chunks."""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {self.stream_type}\r\n"
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()

    def _begun(self) -> bytes:
        """A response up to the first piece."""
        first = Reply().pieces[0].encode()
        sent = self._head
        for part in self.stream(Reply()):
            sent += _chunk(part)
            if first in part:
                return sent
        raise AssertionError("no part of the stream holds the first piece")

    @_check
    async def test_a_streamed_answer(self) -> None:
        await self.assert_answers(streamed=True)

    @_check
    async def test_a_stream_may_come_byte_by_byte(self) -> None:
        body = b"".join(self.stream(Reply()))
        one_by_one = [_chunk(body[n : n + 1]) for n in range(len(body))]
        behaviour = _sends(self._head, *one_by_one, _LAST_CHUNK)
        await self.assert_answers(behaviour, streamed=True)

    @_check
    async def test_a_stream_may_be_split_anywhere(self) -> None:
        body = b"".join(self.stream(Reply()))
        behaviours = [
            _sends(self._head, _chunk(body[:at]), _chunk(body[at:]), _LAST_CHUNK)
            for at in _places(body)
        ]
        await self.assert_answers(*behaviours, streamed=True)

    @_check
    async def test_a_piece_is_told_before_the_next_one_comes(self) -> None:
        stall = Stall(self._begun())
        async with self.asking(stall) as model:
            stream = stream_of(model, self.asks(streamed=True))
            first = await _read_first(stream)
            assert first == Reply().pieces[0], repr(first)
            async with asyncio.timeout(_AT_ONCE_SECONDS):
                await stream.aclose()
                await stall.left.wait()

    @_check
    async def test_cancelling_hangs_up_on_a_stream(self) -> None:
        for sent in (self._head, self._begun()):
            stall = Stall(sent)
            async with self.asking(stall) as model:
                await stall.cancel(hear(model, self.asks(streamed=True)))

    @_check
    async def test_a_stream_that_breaks_off_is_told_as_such(self) -> None:
        ways = [
            _sends(self._begun()),
            _sends(self._begun(), _LAST_CHUNK),
            _sends(self._begun(), by_reset=True),
        ]
        for error in await self.outcomes(*ways, streamed=True):
            assert isinstance(error, ProviderStreamBroken), type(error).__name__

    @_check
    async def test_half_of_a_stream_is_no_answer(self) -> None:
        body = b"".join(self.stream(Reply()))
        behaviours = [
            _sends(self._head, _chunk(body[:end]), *last)
            for end in _places(body)
            for last in ((), (_LAST_CHUNK,))
        ]
        for outcome in await self.outcomes(*behaviours, streamed=True):
            _assert_not_half(outcome, Reply())


class Stall:
    """Sends this and then nothing more; `left` is set when the provider hangs up."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self._is_silent = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, wire: Wire, received: Received) -> None:
        await wire.send(self._sent)
        await _let_read()
        self._is_silent.set()
        await wire.closed_by_client()
        self.left.set()

    async def cancel(self, asking: Coroutine[Any, Any, Heard]) -> None:
        """Cancel a question that it keeps waiting; it must end, and hang up."""
        task = asyncio.create_task(asking)
        silence = asyncio.create_task(self._is_silent.wait())
        await asyncio.wait({task, silence}, return_when=asyncio.FIRST_COMPLETED)
        silence.cancel()
        assert not task.done(), f"it did not wait: {await task}"
        task.cancel()
        await asyncio.wait([task], timeout=_AT_ONCE_SECONDS)
        assert task.cancelled(), f"it was cancelled, and is {task}"
        async with asyncio.timeout(_AT_ONCE_SECONDS):
            await self.left.wait()


_LAST_CHUNK = b"0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _sends(*parts: bytes, by_reset: bool = False) -> Behaviour:
    """Exactly these bytes, each read before the next, and the connection's end."""

    async def send(wire: Wire, received: Received) -> None:
        for part in parts:
            await wire.send(part)
            await _let_read()
        if by_reset:
            wire.reset()
        else:
            wire.writer.close()

    return send


async def _let_read() -> None:
    """Let a provider in this loop read what has been sent."""
    for _ in range(5):
        await asyncio.sleep(0)


async def _read_first(stream: AsyncIterator[Delta | Finish]) -> str:
    """The first piece of text."""
    async for event in stream:
        if isinstance(event, Delta) and event.text:
            return event.text
    raise AssertionError("a stream without text")


def _places(body: bytes) -> list[int]:
    """Where to cut a body: behind every line, and at as many places as time allows."""
    lines = {n + 1 for n, byte in enumerate(body[:-1]) if byte in b"\r\n"}
    anywhere = range(1, len(body))
    return sorted(
        lines | {*random.Random(1).sample(anywhere, min(_CUTS, len(body) - 1))}
    )


def _assert_not_half(outcome: Heard | ProviderError, reply: Reply) -> None:
    if isinstance(outcome, Heard):
        assert outcome.text == reply.text, "half an answer that has a Finish"


def assert_keeps_the_key(error: BaseException) -> None:
    """Neither an error nor what led to it holds the key, however it is written down."""
    written = "".join(traceback.format_exception(error))
    assert KEY not in written, "the key is in the traceback"
    seen: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        if (one := ahead.pop()) is None or one in seen:
            continue
        seen.append(one)
        written = f"{one!r} {one} {one.args!r} {vars(one)!r}"
        # `raise ... from None` hides a context from tracebacks, and keeps it.
        where = "" if one is error else f", which led to {type(error).__name__}"
        assert KEY not in written, f"the key is in {type(one).__name__}{where}"
        ahead += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
