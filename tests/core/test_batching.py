"""Work that shares a batch: everybody gets their own outcome."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.batching import Batcher
from core.db import Busy, DatabaseUnavailable


class Store:
    """What is looked up: numbers have squares, but for those that are poison."""

    def __init__(self, poison: frozenset[int] = frozenset()) -> None:
        self.batches: list[list[int]] = []
        self.poison = poison
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def look_up(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.batches.append(list(keys))
        await self.is_open.wait()
        if self.poison & set(keys):
            raise ValueError("poison")
        # In any order, and nothing for odd numbers.
        return {key: key * key for key in reversed(keys) if key % 2 == 0}


async def test_a_lone_key_is_looked_up_at_once() -> None:
    store = Store()
    assert await Batcher(store.look_up).find(4) == 16
    assert store.batches == [[4]]


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
    assert await first == 4
    assert await asyncio.gather(*later) == [16, None, 16, 36]
    assert store.batches == [[2], [4, 5, 6]]


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
    assert await asyncio.gather(*waiting[1:], queued[1]) == [16, 36, 100]
    # Nobody waits for 8 any more, so it is not even asked for.
    assert store.batches == [[2, 4, 6], [10]]


async def test_one_poisoned_key_fails_alone() -> None:
    store = Store(poison=frozenset({21}))
    batcher = Batcher(store.look_up)
    keys = range(64)
    found = await asyncio.gather(*map(batcher.find, keys), return_exceptions=True)
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
    found = await asyncio.gather(*map(batcher.find, range(50)), return_exceptions=True)
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
    stuck = await asyncio.gather(
        *(batcher.find(key) for key in (2, 4)), return_exceptions=True
    )
    assert {type(outcome) for outcome in stuck} == {Busy}
    store.is_open.set()
    assert await batcher.find(6) == 36


async def test_the_queue_is_bounded_and_so_is_a_batch() -> None:
    store = Store()
    batcher = Batcher(store.look_up, most=2, longest_queue=5)
    found = await asyncio.gather(
        *(batcher.find(key) for key in range(8)), return_exceptions=True
    )
    refused = [outcome for outcome in found if isinstance(outcome, Busy)]
    assert len(refused) == 3
    assert store.batches == [[0, 1], [2, 3], [4]]


async def test_draining_waits_for_what_is_under_way() -> None:
    store = Store()
    batcher = Batcher(store.look_up)
    await batcher.drain()
    asking = asyncio.create_task(batcher.find(2))
    await asyncio.sleep(0)
    await batcher.drain()
    assert asking.done() or await asking == 4


STEPS = ("find", "cancel", "turn", "gate")


@pytest.mark.parametrize("most", [1, 3, 1_000])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["find", "cancel", "turn", "gate"]), st.integers(0, 9)
        ),
        max_size=60,
    ),
    poison=st.frozensets(st.integers(0, 9), max_size=3),
)
def test_everybody_gets_what_the_model_says(
    most: int, steps: list[tuple[str, int]], poison: frozenset[int]
) -> None:
    """Any mix of equal keys, poison, waiters who leave, and a store that stalls."""

    async def play() -> None:
        store = Store(poison)
        batcher = Batcher(store.look_up, most=most)
        asking: list[tuple[int, asyncio.Task[int | None]]] = []
        left: set[int] = set()
        for what, key in steps:
            if what == "find":
                asking.append((key, asyncio.create_task(batcher.find(key))))
            elif what == "cancel" and asking:
                number = key % len(asking)
                # One who has an answer already cannot leave without it.
                if asking[number][1].cancel():
                    left.add(number)
            elif what == "turn":
                await asyncio.sleep(0)
            elif store.is_open.is_set():
                store.is_open.clear()
            else:
                store.is_open.set()
        store.is_open.set()
        await asyncio.gather(*(task for _, task in asking), return_exceptions=True)
        for number, (key, task) in enumerate(asking):
            if number in left:
                assert task.cancelled()
            elif key in poison:
                assert isinstance(task.exception(), ValueError)
            else:
                assert task.result() == (key * key if key % 2 == 0 else None)
        await batcher.drain()

    asyncio.run(play())
