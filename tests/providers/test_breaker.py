"""When a provider is left alone, by a clock that the test turns."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.breaker import OPEN_SECONDS, WINDOW_SECONDS, Breaker, State


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker(clock: Clock, calls: int = 10, chance: float = 0.5) -> Breaker:
    return Breaker(calls, clock=clock, random=lambda: chance)


def fails(found: Breaker, times: int = 1) -> None:
    for _ in range(times):
        found.failed(is_probe=found.begin())


def succeeds(found: Breaker, times: int = 1) -> None:
    for _ in range(times):
        found.succeeded(is_probe=found.begin())


def test_U31_it_opens_once_half_of_enough_calls_have_failed(clock: Clock) -> None:
    found = breaker(clock)
    succeeds(found, 5)
    fails(found, 4)
    assert (found.state, found.wait_seconds) == (State.CLOSED, 0)
    fails(found)
    assert (found.state, found.wait_seconds) == (State.OPEN, OPEN_SECONDS)


def test_nine_failures_in_a_row_are_too_few_calls_to_judge(clock: Clock) -> None:
    found = breaker(clock)
    fails(found, 9)
    assert found.state is State.CLOSED


def test_more_successes_than_failures_keep_it_closed(clock: Clock) -> None:
    found = breaker(clock)
    succeeds(found, 100)
    fails(found, 99)
    assert found.state is State.CLOSED


def test_what_happened_before_the_window_is_forgotten(clock: Clock) -> None:
    found = breaker(clock)
    fails(found, 9)
    clock.passes(WINDOW_SECONDS)
    fails(found, 9)
    assert not found.wait_seconds
    fails(found)
    assert found.wait_seconds


def test_with_no_calls_configured_it_never_opens(clock: Clock) -> None:
    found = breaker(clock, calls=0)
    fails(found, 1_000)
    assert found.state is State.CLOSED


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_it_stays_open_for_ten_seconds_give_or_take_a_fifth(
    clock: Clock, chance: float, seconds: float
) -> None:
    found = breaker(clock, chance=chance)
    fails(found, 10)
    clock.passes(seconds - 0.01)
    assert found.state is State.OPEN
    clock.passes(0.01)
    assert (found.state, found.wait_seconds) == (State.HALF_OPEN, 0)


@pytest.fixture
def half_open(clock: Clock) -> Breaker:
    found = breaker(clock)
    fails(found, 10)
    clock.passes(OPEN_SECONDS)
    return found


def test_U31_half_open_lets_one_probe_through(half_open: Breaker) -> None:
    assert half_open.wait_seconds == 0
    assert half_open.begin()
    assert half_open.wait_seconds > 0
    half_open.succeeded(is_probe=True)
    assert (half_open.state, half_open.wait_seconds) == (State.CLOSED, 0)


def test_a_probe_that_fails_opens_it_again(half_open: Breaker, clock: Clock) -> None:
    fails(half_open)
    assert (half_open.state, half_open.wait_seconds) == (State.OPEN, OPEN_SECONDS)
    clock.passes(OPEN_SECONDS)
    succeeds(half_open)
    assert half_open.state is State.CLOSED


def test_a_probe_that_succeeds_forgets_what_was_before(half_open: Breaker) -> None:
    succeeds(half_open)
    # The ten failures that opened it are still within the window.
    fails(half_open, 8)
    assert half_open.state is State.CLOSED


def test_a_probe_that_is_cancelled_makes_room_for_another(half_open: Breaker) -> None:
    half_open.abandoned(is_probe=half_open.begin())
    assert (half_open.state, half_open.wait_seconds) == (State.HALF_OPEN, 0)
    assert half_open.begin()


def test_calls_from_before_it_opened_decide_nothing(half_open: Breaker) -> None:
    assert half_open.begin()
    half_open.succeeded(is_probe=False)
    half_open.failed(is_probe=False)
    half_open.abandoned(is_probe=False)
    assert half_open.state is State.HALF_OPEN
    assert half_open.wait_seconds > 0  # the probe is still on its way


def test_U19_a_cool_down_is_a_wait_and_no_failure(clock: Clock) -> None:
    found = breaker(clock)
    for _ in range(20):
        found.cool(3, is_probe=found.begin())
    assert (found.state, found.wait_seconds) == (State.COOLING, 3)
    clock.passes(3)
    assert (found.state, found.wait_seconds) == (State.CLOSED, 0)


def test_a_shorter_cool_down_does_not_end_a_longer_one(clock: Clock) -> None:
    found = breaker(clock)
    found.cool(30, is_probe=False)
    found.cool(1, is_probe=False)
    assert found.wait_seconds == 30


@given(st.lists(st.sampled_from("sfac1"), max_size=200), st.integers())
def test_it_never_stays_shut_for_good(steps: list[str], seed: int) -> None:
    """Whatever happened, after the longest wait a call may go, and a good one heals."""
    clock, chance = Clock(), random.Random(seed)
    found = Breaker(10, clock=clock, random=chance.random)
    for step in steps:
        if step == "1":
            clock.passes(1)
        elif not found.wait_seconds:
            is_probe = found.begin()
            if step == "s":
                found.succeeded(is_probe=is_probe)
            elif step == "f":
                found.failed(is_probe=is_probe)
            elif step == "a":
                found.abandoned(is_probe=is_probe)
            else:
                found.cool(2, is_probe=is_probe)
    clock.passes(OPEN_SECONDS * 1.2)
    assert found.wait_seconds == 0
    succeeds(found)
    assert found.state is State.CLOSED
