"""Work that shares a batch: everybody gets their own outcome."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.batching import Batcher
from core.db import Busy, DatabaseUnavailable

CHANGE = 10_000


class Store:
    """What is looked up: numbers have squares, but for those that are poison.

    A change adds `CHANGE` to all of them.
    """

    def __init__(self, poison: frozenset[int] = frozenset()) -> None:
        self.batches: list[list[int]] = []
        self.changes = 0
        self.poison = poison
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def look_up(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.batches.append(list(keys))
        more = self.changes * CHANGE
        await self.is_open.wait()
        if self.poison & set(keys):
            raise ValueError("poison")
        # In any order, and nothing for odd numbers.
        return {key: key * key + more for key in reversed(keys) if key % 2 == 0}


async def outcomes(*asking: Awaitable[Any]) -> list[Any]:
    """What came of each; a TimeoutError when somebody is left waiting for ever."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*asking, return_exceptions=True)


async def test_a_lone_key_is_looked_up_at_once() -> None:
    store = Store()
    asking = asyncio.create_task(Batcher(store.look_up).find(4))
    # One turn of the loop begins it and one asks: there is no timer in between.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.batches == [[4]]
    assert await asking == 16


async def test_what_arrives_meanwhile_shares_the_next_batch_and_no_earlier_one() -> (
    None
):
    store = Store()
    batcher = Batcher(store.look_up)
    store.is_open.clear()
    first = asyncio.create_task(batcher.find(2))
    while not store.batches:
        await asyncio.sleep(0)
    later = [asyncio.create_task(batcher.find(key)) for key in (4, 5, 4, 6)]
    await asyncio.sleep(0)
    store.is_open.set()
    assert await outcomes(first, *later) == [4, 16, None, 16, 36]
    assert store.batches == [[2], [4, 5, 6]]


async def test_what_is_under_way_is_too_old_for_whoever_comes_now() -> None:
    """A session that ended meanwhile must not be seen by a request made after that."""
    facts, asked, is_open = {2: "before"}, asyncio.Event(), asyncio.Event()

    async def look_up(keys: Sequence[int]) -> Mapping[int, str]:
        found = {key: facts[key] for key in keys}
        asked.set()
        await is_open.wait()
        return found

    batcher = Batcher(look_up)
    first = asyncio.create_task(batcher.find(2))
    await asked.wait()
    facts[2] = "after"
    second = asyncio.create_task(batcher.find(2))
    await asyncio.sleep(0)
    is_open.set()
    assert await outcomes(first, second) == ["before", "after"]


async def test_a_waiter_who_leaves_harms_nobody() -> None:
    store = Store()
    batcher = Batcher(store.look_up)
    store.is_open.clear()
    waiting = [asyncio.create_task(batcher.find(key)) for key in (2, 4, 6)]
    while not store.batches:
        await asyncio.sleep(0)
    waiting[0].cancel()
    queued = [asyncio.create_task(batcher.find(key)) for key in (8, 10)]
    await asyncio.sleep(0)
    queued[0].cancel()
    await asyncio.sleep(0)
    store.is_open.set()
    assert await outcomes(*waiting[1:], queued[1]) == [16, 36, 100]
    # Nobody waits for 8 any more, so it is not even asked for.
    assert store.batches == [[2, 4, 6], [10]]


async def test_what_came_of_it_is_told_when_its_waiter_has_left_too_late() -> None:
    store, told = Store(), list[tuple[int, int]]()
    batcher = Batcher(store.look_up, unclaimed=lambda *found: told.append(found))
    store.is_open.clear()
    waiting = [asyncio.create_task(batcher.find(key)) for key in (2, 3, 4)]
    while not store.batches:
        await asyncio.sleep(0)
    queued = asyncio.create_task(batcher.find(6))
    await asyncio.sleep(0)
    for task in (waiting[0], waiting[1], queued):
        task.cancel()
    await asyncio.sleep(0)
    store.is_open.set()
    assert await outcomes(waiting[2]) == [16]
    await batcher.drain()
    # Nothing came of 3, and 6 was never asked for.
    assert (told, store.batches) == ([(2, 4)], [[2, 3, 4]])


async def test_when_all_who_waited_have_left_nothing_is_asked() -> None:
    store = Store()
    batcher = Batcher(store.look_up)
    waiting = [asyncio.create_task(batcher.find(key)) for key in (2, 4)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await outcomes(*waiting)
    await batcher.drain()
    assert store.batches == []


@pytest.mark.parametrize("error", [DatabaseUnavailable(), ValueError("poison")])
async def test_a_waiter_who_leaves_a_batch_that_fails_harms_nobody(
    error: Exception,
) -> None:
    asked, is_open = asyncio.Event(), asyncio.Event()

    async def fail(keys: Sequence[int]) -> Mapping[int, int]:
        asked.set()
        await is_open.wait()
        raise error

    batcher = Batcher(fail)
    waiting = [asyncio.create_task(batcher.find(key)) for key in (1, 2, 3)]
    await asked.wait()
    waiting[0].cancel()
    is_open.set()
    found = await outcomes(*waiting)
    kinds = [type(outcome) for outcome in found]
    assert kinds == [asyncio.CancelledError, type(error), type(error)]


async def test_one_poisoned_key_fails_alone() -> None:
    store = Store(poison=frozenset({21}))
    batcher = Batcher(store.look_up)
    keys = range(64)
    found = await outcomes(*map(batcher.find, keys))
    for key, outcome in zip(keys, found, strict=True):
        if key == 21:
            assert isinstance(outcome, ValueError)
        else:
            assert outcome == (key * key if key % 2 == 0 else None)
    assert len(store.batches) == 13


async def test_no_database_fails_everybody_at_once_by_errors_of_their_own() -> None:
    asked = 0

    async def unreachable(keys: Sequence[int]) -> Mapping[int, int]:
        nonlocal asked
        asked += 1
        raise DatabaseUnavailable from OSError("gone")

    batcher: Batcher[int, int] = Batcher(unreachable)
    found = await outcomes(*map(batcher.find, range(50)))
    assert {type(outcome) for outcome in found} == {DatabaseUnavailable}
    assert len({id(outcome) for outcome in found}) == 50
    assert asked == 1
    first, *_ = found
    assert isinstance(first, DatabaseUnavailable)
    assert isinstance(first.__cause__, OSError)


async def test_a_batch_has_its_own_deadline() -> None:
    store = Store()
    batcher = Batcher(store.look_up, seconds=0.02)
    store.is_open.clear()
    stuck = await outcomes(*(batcher.find(key) for key in (2, 4)))
    assert {type(outcome) for outcome in stuck} == {Busy}
    store.is_open.set()
    assert await outcomes(batcher.find(6)) == [36]


async def test_who_comes_meanwhile_has_no_part_in_a_batch_that_is_stuck() -> None:
    store = Store()
    batcher = Batcher(store.look_up, seconds=0.2)
    store.is_open.clear()
    stuck = asyncio.create_task(batcher.find(2))
    while not store.batches:
        await asyncio.sleep(0)
    queued = asyncio.create_task(batcher.find(4))
    (outcome,) = await outcomes(stuck)
    assert isinstance(outcome, Busy)
    store.is_open.set()
    assert await outcomes(queued) == [16]


async def test_the_queue_is_bounded_and_so_is_a_batch() -> None:
    store = Store()
    batcher = Batcher(store.look_up, most=2, longest_queue=5)
    found = await outcomes(*(batcher.find(key) for key in range(8)))
    refused = [outcome for outcome in found if isinstance(outcome, Busy)]
    assert len(refused) == 3
    assert store.batches == [[0, 1], [2, 3], [4]]


async def test_draining_waits_for_what_is_under_way_and_what_is_queued() -> None:
    store = Store()
    batcher = Batcher(store.look_up)
    await batcher.drain()
    store.is_open.clear()
    asking = [asyncio.create_task(batcher.find(2))]
    while not store.batches:
        await asyncio.sleep(0)
    asking.append(asyncio.create_task(batcher.find(4)))
    await asyncio.sleep(0)
    draining = asyncio.create_task(batcher.drain())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not draining.done()
    store.is_open.set()
    await draining
    assert store.batches == [[2], [4]]
    assert await outcomes(*asking) == [4, 16]


async def test_what_is_submitted_is_done_though_whoever_did_so_is_cancelled() -> None:
    store = Store()
    batcher = Batcher(store.look_up)
    submitted: list[asyncio.Future[int | None]] = []

    async def submit() -> None:
        # Cancelled before its first step it would never begin: so this is its first.
        submitted.append(batcher.submit(4))
        await asyncio.shield(submitted[0])

    task = asyncio.create_task(submit())
    await asyncio.sleep(0)
    task.cancel()
    (left,) = await outcomes(task)
    assert isinstance(left, asyncio.CancelledError)
    await batcher.drain()
    assert store.batches == [[4]]
    assert submitted[0].result() == 16


async def test_submitting_to_a_queue_that_is_full_is_refused_on_the_spot() -> None:
    store = Store()
    batcher = Batcher(store.look_up, most=2, longest_queue=3)
    store.is_open.clear()
    waiting = [batcher.submit(key) for key in (2, 4, 6)]
    with pytest.raises(Busy):
        batcher.submit(8)
    # What is under way does not wait in the queue.
    await asyncio.sleep(0)
    waiting.append(batcher.submit(10))
    store.is_open.set()
    assert await outcomes(*waiting) == [4, 16, 36, 100]
    assert store.batches == [[2, 4], [6, 10]]


class Mortal:
    """Squares numbers; the first so many times, or over a poison, it dies."""

    def __init__(self, deaths: int, poison: int | None = None) -> None:
        self.deaths = deaths
        self.poison = poison
        self.calls: list[tuple[str, list[int]]] = []

    async def first(self, keys: Sequence[int]) -> Mapping[int, int]:
        return self._square("first", keys)

    async def again(self, keys: Sequence[int]) -> Mapping[int, int]:
        return self._square("again", keys)

    def _square(self, call: str, keys: Sequence[int]) -> Mapping[int, int]:
        self.calls.append((call, list(keys)))
        if self.deaths:
            self.deaths -= 1
            raise DatabaseUnavailable
        if self.poison in keys:
            raise ValueError("poison")
        return {key: key * key for key in keys}


async def test_a_batch_whose_connection_died_is_tried_again_once_and_whole() -> None:
    store = Mortal(deaths=1)
    batcher = Batcher(store.first, again=store.again)
    assert await outcomes(*map(batcher.submit, (1, 2, 3))) == [1, 4, 9]
    assert store.calls == [("first", [1, 2, 3]), ("again", [1, 2, 3])]


async def test_a_batch_is_not_tried_a_third_time() -> None:
    store = Mortal(deaths=2)
    batcher = Batcher(store.first, again=store.again)
    found = await outcomes(*map(batcher.submit, (1, 2)))
    assert [type(outcome) for outcome in found] == [DatabaseUnavailable] * 2
    assert store.calls == [("first", [1, 2]), ("again", [1, 2])]
    assert await outcomes(batcher.submit(3)) == [9]


async def test_poison_that_shows_the_second_time_still_fails_alone() -> None:
    store = Mortal(deaths=1, poison=3)
    batcher = Batcher(store.first, again=store.again)
    *well, poisoned = await outcomes(*map(batcher.submit, (1, 2, 3)))
    assert well == [1, 4]
    assert isinstance(poisoned, ValueError)
    # In halves it is new work: nothing of it was done.
    assert store.calls[:2] == [("first", [1, 2, 3]), ("again", [1, 2, 3])]
    assert [call for call, _ in store.calls[2:]] == ["first"] * 4


async def test_poison_is_not_tried_again() -> None:
    store = Mortal(deaths=0, poison=1)
    (outcome,) = await outcomes(Batcher(store.first, again=store.again).submit(1))
    assert isinstance(outcome, ValueError)
    assert store.calls == [("first", [1])]


async def test_both_tries_of_a_batch_share_its_deadline() -> None:
    async def die(keys: Sequence[int]) -> Mapping[int, int]:
        raise DatabaseUnavailable

    async def stall(keys: Sequence[int]) -> Mapping[int, int]:
        await asyncio.Event().wait()
        raise AssertionError

    batcher = Batcher(die, again=stall, seconds=0.02)
    found = await outcomes(batcher.submit(1), batcher.submit(2))
    assert [type(outcome) for outcome in found] == [Busy, Busy]


async def test_what_one_waiter_adds_to_an_error_no_other_sees() -> None:
    async def fail(keys: Sequence[int]) -> Mapping[int, int]:
        raise DatabaseUnavailable

    batcher: Batcher[int, int] = Batcher(fail)
    one, other = await outcomes(batcher.submit(1), batcher.submit(2))
    one.members["question_id"] = 1
    assert other.members == {}


STEPS = ("find", "cancel", "turn", "gate", "change")


@pytest.mark.parametrize("most", [1, 3, 1_000])
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), max_size=60),
    poison=st.frozensets(st.integers(0, 9), max_size=3),
)
def test_everybody_gets_what_the_model_says(
    most: int, steps: list[tuple[str, int]], poison: frozenset[int]
) -> None:
    """Any mix of equal keys, poison, changes, leavers, and a store that stalls."""

    async def play() -> None:
        store = Store(poison)
        batcher = Batcher(store.look_up, most=most)
        asking: list[tuple[int, int, asyncio.Task[int | None]]] = []
        left: set[int] = set()
        for what, key in steps:
            if what == "find":
                task = asyncio.create_task(batcher.find(key))
                asking.append((key, store.changes, task))
            elif what == "cancel" and asking:
                number = key % len(asking)
                # One who has an answer already cannot leave without it.
                if asking[number][2].cancel():
                    left.add(number)
            elif what == "turn":
                await asyncio.sleep(0)
            elif what == "change":
                store.changes += 1
            elif store.is_open.is_set():
                store.is_open.clear()
            else:
                store.is_open.set()
        store.is_open.set()
        await outcomes(*(task for *_, task in asking))
        for number, (key, changes, task) in enumerate(asking):
            if number in left:
                assert task.cancelled()
            elif key in poison:
                assert isinstance(task.exception(), ValueError)
            elif key % 2:
                assert task.result() is None
            else:
                found = task.result()
                assert found is not None
                assert found % CHANGE == key * key
                # Never older than the asking.
                assert found // CHANGE >= changes
        await batcher.drain()

    asyncio.run(play())


async def test_F43_what_is_heavy_shares_a_batch_with_little() -> None:
    """Or a hundred long answers would take too long to store, and all would fail."""
    batches: list[list[int]] = []

    async def work(keys: Sequence[int]) -> Mapping[int, int]:
        batches.append(list(keys))
        return {key: key for key in keys}

    batcher = Batcher(work, weigh=lambda key: key, heaviest=10)
    found = await asyncio.gather(*map(batcher.find, (5, 4, 3, 20, 1, 9, 2)))
    assert found == [5, 4, 3, 20, 1, 9, 2]
    assert batches == [[5, 4], [3], [20], [1, 9], [2]]
