"""Who is asked, how often and for how long, by a clock that the test turns.

The providers are scripts: each call plays the next line. What real backends do to the
same layer is in `tests/faults`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from core.errors import ClientGone
from providers.backend import Backend, Timing
from providers.breaker import State
from providers.failover import FailoverChat
from providers.public import (
    Answer,
    AnswerTooLarge,
    ChatRequest,
    Delta,
    Finish,
    Progress,
    ProviderAuth,
    ProviderBadResponse,
    ProviderBug,
    ProviderError,
    ProviderFailed,
    ProviderMisconfigured,
    ProviderOptions,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStreamBroken,
    ProviderTimeout,
    ProviderTls,
    ProviderUnreachable,
)
from providers.settings import LlmSettings


class Time:
    """A clock that moves when somebody sleeps; chance is always the same."""

    def __init__(self, chance: float = 0.5) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []
        self.timing = Timing(lambda: self.now, self.sleep, lambda: chance)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


STALL = "stall"
Line = ProviderError | str | list[Delta | Finish | ProviderError | str]


class Scripted:
    """Plays one line a call, the last one for ever: an error, a text, or events."""

    def __init__(self, *lines: Line) -> None:
        self._lines = list(lines)
        self.calls = 0
        self.closed = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
        line = self._lines[min(self.calls, len(self._lines) - 1)]
        self.calls += 1
        try:
            events = line if isinstance(line, list) else [line]
            for event in events:
                if isinstance(event, ProviderError):
                    raise event
                if event == STALL:
                    await asyncio.Event().wait()
                elif isinstance(event, str):
                    yield Delta(event)
                    yield Finish("m", "stop")
                else:
                    yield event
        finally:
            self.closed += 1


class Reader:
    """Takes what it hears, or not, when told so."""

    def __init__(self, *, is_stuck: bool = False) -> None:
        self.heard: list[str] = []
        self._is_stuck = is_stuck

    async def hear(self, text: str) -> None:
        self.heard.append(text)
        if self._is_stuck:
            await asyncio.Event().wait()


class Case:
    """A chat over scripts called a, b, c and d, and what became of a question."""

    def __init__(
        self, *models: Scripted, time: Time | None = None, **options: Any
    ) -> None:
        self.time = time or Time()
        self.models = models
        llm = {
            k: options.pop(k) for k in list(options) if k in LlmSettings.model_fields
        }
        each = ProviderOptions(type="script", **options)
        self.backends = [
            Backend(name, model, each, self.time.timing)
            for name, model in zip("abcd", models, strict=False)
        ]
        self.chat = FailoverChat(self.backends, LlmSettings(**llm), self.time.timing)
        self.progress = Progress()

    async def ask(self, reader: Reader | None = None) -> Answer:
        self.progress = Progress(reader)
        return await self.chat.answer("Why?", self.progress)

    async def fail(self, reader: Reader | None = None) -> ProviderError:
        with pytest.raises(ProviderError) as failed:
            await self.ask(reader)
        assert failed.value.__cause__ is failed.value.__context__ is None
        return failed.value

    @property
    def calls(self) -> list[int]:
        return [model.calls for model in self.models]

    @property
    def attempts(self) -> list[tuple[str, str]]:
        return [(found.provider, found.outcome) for found in self.progress.attempts]


# Retries.

PASSING: list[Callable[[], ProviderError]] = [
    ProviderFailed,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderStreamBroken,
    ProviderUnreachable,
]
LASTING: list[Callable[[], ProviderError]] = [
    ProviderAuth,
    ProviderBadResponse,
    ProviderBug,
    ProviderMisconfigured,
    ProviderTimeout,
    ProviderTls,
    AnswerTooLarge,
    ProviderRejected,
]


@pytest.mark.parametrize("kind", PASSING)
async def test_what_may_pass_is_tried_once_more(
    kind: Callable[[], ProviderError],
) -> None:
    case = Case(Scripted(kind(), "Now."))
    assert (await case.ask()).text == "Now."
    assert case.attempts == [("a", kind().code), ("a", "answered")]
    # Full jitter: half of a quarter of a second, by this test's chance.
    assert case.time.slept == [0.125]


@pytest.mark.parametrize("kind", PASSING)
async def test_U30_two_tries_are_all_that_one_provider_gets(
    kind: Callable[[], ProviderError],
) -> None:
    case = Case(Scripted(kind()))
    assert (await case.fail()).code == kind().code
    assert case.calls == [2]
    assert [found.milliseconds for found in case.progress.attempts] == [0, 0]


async def test_one_that_is_left_alone_from_now_on_is_not_waited_for() -> None:
    case = Case(Scripted(ProviderFailed()), Scripted("B's."), breaker_calls=1)
    assert (await case.ask()).text == "B's."
    assert case.attempts == [("a", "provider_failed"), ("b", "answered")]
    assert case.time.slept == []


async def test_what_it_said_is_told_also_if_it_is_left_alone_meanwhile() -> None:
    class Meanwhile(Time):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            case.backends[0].breaker.cool(30, is_probe=False)

    case = Case(Scripted(ProviderFailed()), time=Meanwhile())
    assert (await case.fail()).code == "provider_failed"
    assert case.attempts == [("a", "provider_failed"), ("a", "provider_unavailable")]


@pytest.mark.parametrize("kind", LASTING)
async def test_what_lasts_is_not_tried_again(
    kind: Callable[[], ProviderError],
) -> None:
    case = Case(Scripted(kind()))
    assert (await case.fail()).code == kind().code
    assert (case.calls, case.time.slept) == ([1], [])


async def test_U30_retries_are_a_tenth_of_the_questions_when_it_goes_on() -> None:
    case = Case(Scripted(ProviderFailed()), breaker_calls=0)
    for _ in range(500):
        await case.fail()
    # Ten that were saved up, and a tenth of five hundred.
    assert 550 <= case.calls[0] <= 561


async def test_U19_a_wait_that_fits_is_obeyed() -> None:
    limited = ProviderRateLimited(retry_after_seconds=8)
    case = Case(Scripted(limited, "Later."))
    assert (await case.ask()).text == "Later."
    assert case.time.slept == [8.125]


@pytest.mark.parametrize(("wait", "deadline"), [(11, 60), (8, 15), (3600, 60)])
async def test_U19_a_wait_that_does_not_fit_is_left_to_the_client(
    wait: int, deadline: int
) -> None:
    limited = ProviderRateLimited(retry_after_seconds=wait)
    case = Case(Scripted(limited), deadline_seconds=deadline)
    failure = await case.fail()
    assert failure.retry_after_seconds == min(wait, 60)
    assert (case.calls, case.time.slept) == ([1], [])
    assert case.backends[0].breaker.state is State.COOLING


async def test_a_wait_of_an_overloaded_one_is_obeyed_too() -> None:
    case = Case(Scripted(ProviderOverloaded(retry_after_seconds=2), "Later."))
    assert (await case.ask()).text == "Later."
    assert case.time.slept == [2.125]


async def test_a_failure_that_has_used_up_the_deadline_is_the_end() -> None:
    time = Time()

    class Slow(Scripted):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
            self.calls += 1
            time.now += 5
            raise ProviderFailed
            yield

    case = Case(Slow(), Scripted("Too late."), time=time, deadline_seconds=5)
    assert (await case.fail()).code == "provider_failed"
    assert case.calls == [1, 0]
    assert [found.milliseconds for found in case.progress.attempts] == [5_000]


# Fallback.


async def test_U33_the_next_one_answers_and_all_attempts_are_told() -> None:
    case = Case(
        Scripted(ProviderUnreachable()), Scripted(ProviderTls()), Scripted("C's.")
    )
    answer = await case.ask()
    assert (answer.text, answer.provider) == ("C's.", "c")
    assert case.attempts == [
        ("a", "provider_unreachable"),
        ("b", "provider_tls"),
        ("c", "answered"),
    ]


async def test_U30_three_tries_are_all_that_a_question_gets() -> None:
    case = Case(*(Scripted(ProviderFailed()) for _ in range(3)))
    await case.fail()
    assert case.calls == [1, 1, 1]
    case = Case(*(Scripted(ProviderFailed()) for _ in range(4)))
    await case.fail()
    assert case.calls == [1, 1, 1, 0]
    case = Case(*(Scripted(ProviderFailed()) for _ in range(2)))
    await case.fail()
    assert case.calls == [2, 1]


async def test_the_last_real_failure_is_the_one_that_is_told() -> None:
    case = Case(Scripted(ProviderFailed()), Scripted(ProviderAuth()))
    assert (await case.fail()).code == "provider_auth"


async def test_U15_a_question_that_is_refused_is_not_taken_elsewhere() -> None:
    case = Case(Scripted(ProviderRejected()), Scripted("Not asked."))
    assert (await case.fail()).code == "provider_rejected"
    assert case.calls == [1, 0]
    assert case.backends[0].breaker.state is State.CLOSED


async def test_U33_nobody_goes_on_where_another_broke_off() -> None:
    broken: Line = [Delta("Half an "), ProviderStreamBroken()]
    case = Case(Scripted(broken), Scripted("Not asked."))
    reader = Reader()
    assert (await case.fail(reader)).code == "provider_stream_broken"
    assert (reader.heard, case.progress.text) == (["Half an "], "Half an ")
    assert case.calls == [1, 0]


async def test_half_an_answer_that_nobody_has_read_is_forgotten() -> None:
    broken: Line = [Delta("Half an "), ProviderStreamBroken()]
    case = Case(Scripted(broken, "Whole."))
    assert (await case.ask()).text == case.progress.text == "Whole."


async def test_a_thought_is_not_yet_half_an_answer() -> None:
    case = Case(Scripted([Delta(""), ProviderStreamBroken()], "Whole."))
    reader = Reader()
    assert (await case.ask(reader)).text == "Whole."
    assert reader.heard == ["Whole."]


# Time, of the real loop: nothing here waits for longer than it says.


async def test_U02_a_silent_provider_is_given_up_for_the_next() -> None:
    case = Case(Scripted([STALL]), Scripted("Here."), first_token_seconds=0.01)
    assert (await case.ask()).provider == "b"
    assert case.attempts == [("a", "provider_timeout"), ("b", "answered")]
    assert case.models[0].closed == 1


async def test_an_answer_that_comes_whole_has_all_the_time_there_is() -> None:
    """Where nobody else could be asked, giving up early would help nobody."""
    case = Case(Scripted([STALL]), first_token_seconds=0.01, deadline_seconds=0.2)
    started = asyncio.get_running_loop().time()
    assert (await case.fail()).code == "provider_timeout"
    assert asyncio.get_running_loop().time() - started >= 0.2


async def test_a_stream_has_to_begin_in_time_even_if_nobody_else_is_there() -> None:
    case = Case(Scripted([STALL]), first_token_seconds=0.01)
    assert (await case.fail(Reader())).code == "provider_timeout"


async def test_U26_a_pause_in_a_stream_is_bounded() -> None:
    case = Case(Scripted([Delta("Well, "), STALL]), idle_seconds=0.01)
    # The 30 s for the beginning are over once it has begun.
    async with asyncio.timeout(60):
        assert (await case.fail(Reader())).code == "provider_timeout"
    assert case.progress.text == "Well, "
    assert case.models[0].closed == 1


async def test_a_thought_sets_the_clock_back() -> None:
    thoughts: list[Delta | Finish | ProviderError | str] = [Delta("")]
    case = Case(
        Scripted([*thoughts, "Done."]), first_token_seconds=5, idle_seconds=0.01
    )
    assert (await case.ask(Reader())).text == "Done."


async def test_U37_a_slow_reader_is_not_a_slow_provider() -> None:
    case = Case(Scripted("A lot."), idle_seconds=0.01, deadline_seconds=0.1)
    with pytest.raises(ClientGone):
        await case.ask(Reader(is_stuck=True))
    assert case.attempts == [("a", "cancelled")]
    assert case.backends[0].breaker.state is State.CLOSED
    assert case.backends[0].bulkhead.in_flight == 0


# Breaker and bulkhead.


async def test_U31_a_provider_that_keeps_failing_is_left_alone_at_once() -> None:
    case = Case(Scripted(*[ProviderTimeout()] * 10, "Well again."))
    for _ in range(10):
        await case.fail()
    failure = await case.fail()
    assert (failure.code, failure.retry_after_seconds) == ("provider_unavailable", 10)
    assert case.attempts == [("a", "provider_unavailable")]
    assert case.calls == [10]
    case.time.now += 10
    assert (await case.ask()).text == "Well again."
    assert case.backends[0].breaker.state is State.CLOSED


async def test_U31_the_next_one_answers_while_the_first_is_left_alone() -> None:
    case = Case(Scripted(ProviderTimeout()), Scripted("B's."))
    for _ in range(12):
        assert (await case.ask()).text == "B's."
    assert case.calls == [10, 12]
    assert case.attempts == [("a", "provider_unavailable"), ("b", "answered")]


@pytest.mark.parametrize("kind", [ProviderRejected, AnswerTooLarge])
async def test_what_a_question_causes_opens_nothing(
    kind: Callable[[], ProviderError],
) -> None:
    case = Case(Scripted(kind()))
    for _ in range(30):
        await case.fail()
    assert case.backends[0].breaker.state is State.CLOSED
    assert case.backends[0].last_error is None


async def test_a_probe_goes_alone() -> None:
    case = Case(Scripted(*[ProviderTimeout()] * 10, [STALL]))
    for _ in range(10):
        await case.fail()
    case.time.now += 10
    probe = asyncio.create_task(case.chat.answer("Well?", Progress()))
    while case.calls == [10]:
        await asyncio.sleep(0)
    assert (await case.fail()).code == "provider_unavailable"
    probe.cancel()
    await asyncio.wait({probe})
    assert case.backends[0].breaker.state is State.HALF_OPEN
    assert case.backends[0].breaker.wait_seconds == 0


async def test_a_probe_that_has_begun_to_answer_lets_the_others_in() -> None:
    case = Case(Scripted(*[ProviderTimeout()] * 10, [Delta("Well, "), STALL], "Now."))
    for _ in range(10):
        await case.fail()
    case.time.now += 10
    reader = Reader()
    probe = asyncio.create_task(case.chat.answer("Long?", Progress(reader)))
    async with asyncio.timeout(60):
        while not reader.heard:
            await asyncio.sleep(0)
    assert (await case.ask()).text == "Now."
    probe.cancel()
    await asyncio.wait({probe})
    assert case.backends[0].breaker.state is State.CLOSED


async def test_U32_a_full_provider_is_busy_and_the_next_one_answers() -> None:
    for others in ([], [Scripted("B's.")]):
        case = Case(Scripted([STALL]), *others, max_concurrency=1, max_waiting=0)
        first = asyncio.create_task(case.chat.answer("Long?", Progress()))
        while not case.models[0].calls:
            await asyncio.sleep(0)
        assert case.backends[0].bulkhead.in_flight == 1
        if others:
            assert (await case.ask()).provider == "b"
            assert case.attempts == [("a", "busy"), ("b", "answered")]
        else:
            assert (await case.fail()).code == "busy"
        first.cancel()
        await asyncio.wait({first})
        assert case.backends[0].bulkhead.in_flight == 0
        assert case.models[0].closed == 1


async def test_who_waits_for_a_place_is_told_when_it_is_found_broken_meanwhile() -> (
    None
):
    case = Case(
        Scripted([STALL]), max_concurrency=1, breaker_calls=1, first_token_seconds=0.05
    )
    first = asyncio.create_task(case.fail(Reader()))
    while case.calls == [0]:
        await asyncio.sleep(0)
    assert (await case.fail(Reader())).code == "provider_unavailable"
    assert (await first).code == "provider_timeout"
    assert case.calls == [1]


async def test_waiting_for_a_place_does_not_outlast_the_deadline() -> None:
    case = Case(
        Scripted([STALL]), max_concurrency=1, wait_seconds=60, deadline_seconds=0.05
    )
    async with case.backends[0].bulkhead.place(1), asyncio.timeout(60):
        assert (await case.fail()).code == "busy"


@pytest.mark.parametrize("reader", [None, Reader()])
async def test_U36_who_is_cancelled_leaves_an_attempt_and_nothing_else(
    reader: Reader | None,
) -> None:
    case = Case(Scripted([Delta("Half an "), STALL]))
    asking = asyncio.create_task(case.ask(reader))
    while not case.progress.pieces:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})
    assert asking.cancelled()
    assert case.attempts == [("a", "cancelled")]
    assert case.progress.text == "Half an "
    assert case.models[0].closed == 1
    assert case.backends[0].bulkhead.in_flight == 0
    assert case.backends[0].breaker.state is State.CLOSED


async def test_U31_who_was_given_too_little_time_is_not_held_to_it() -> None:
    time = Time()

    class Lazy(Scripted):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
            time.now += 4.99
            raise ProviderTimeout
            yield

    case = Case(
        Lazy(), Scripted([STALL]), time=time, deadline_seconds=5, breaker_calls=2
    )
    for _ in range(2):
        assert (await case.fail()).code == "provider_timeout"
        assert case.attempts == [("a", "provider_timeout"), ("b", "provider_timeout")]
    states = [backend.breaker.state for backend in case.backends]
    assert states == [State.OPEN, State.CLOSED]


async def test_U31_a_deadline_shorter_than_its_patience_is_time_enough() -> None:
    case = Case(Scripted([STALL]), deadline_seconds=0.01, breaker_calls=1)
    await case.fail()
    assert case.backends[0].breaker.state is State.OPEN


async def test_when_all_are_left_alone_the_first_to_be_back_says_when() -> None:
    case = Case(
        *(Scripted(ProviderRateLimited(retry_after_seconds=n)) for n in (40, 20, 30))
    )
    await case.fail()
    case.time.now += 5
    failure = await case.fail()
    assert (failure.code, failure.retry_after_seconds) == ("provider_unavailable", 15)


@pytest.mark.parametrize("reader", [None, Reader()])
async def test_F44_a_plugin_that_does_not_let_go_is_left_at_the_deadline(
    reader: Reader | None,
) -> None:
    class Clinging(Scripted):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
            try:
                yield Delta("Half an ")
                await asyncio.Event().wait()
            finally:
                await asyncio.Event().wait()

    case = Case(Clinging(), deadline_seconds=0.01)
    async with asyncio.timeout(60):
        failure = await case.fail(reader)
    assert failure.code == "provider_bug"


async def test_U36_who_is_cancelled_just_when_a_provider_is_late_is_cancelled() -> None:
    asking: list[asyncio.Task[Answer]] = []

    class Late(Scripted):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
            try:
                await asyncio.Event().wait()
            finally:
                asking[0].cancel()
            yield Delta("Never.")

    case = Case(Late(), Scripted("Never asked."), first_token_seconds=0.01)
    asking.append(asyncio.create_task(case.ask()))
    await asyncio.wait(asking)
    assert asking[0].cancelled()
    assert (case.models[1].calls, case.attempts) == (0, [("a", "cancelled")])


async def test_F44_a_late_provider_does_not_make_the_next_one_look_cancelled() -> None:
    class Leaking(Scripted):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Delta | Finish]:
            raise asyncio.CancelledError
            yield

    case = Case(Scripted([STALL]), Leaking(), first_token_seconds=0.01)
    await case.fail()
    assert case.attempts == [("a", "provider_timeout"), ("b", "provider_bug")]


async def test_U36_who_leaves_during_the_pause_before_a_retry_is_not_asked_for() -> (
    None
):
    class Waiting(Time):
        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)
            await asyncio.Event().wait()

    case = Case(Scripted(ProviderFailed(), "Too late."), time=Waiting())
    asking = asyncio.create_task(case.ask())
    while not case.time.slept:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})
    assert asking.cancelled()
    assert (case.calls, case.attempts) == ([1], [("a", "provider_failed")])
    assert case.backends[0].bulkhead.in_flight == 0
