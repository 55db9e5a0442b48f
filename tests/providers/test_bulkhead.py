"""Places and a bounded queue: a slow provider fills only its own."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from providers.bulkhead import Bulkhead
from providers.public import ProviderBusy

LONG = 60.0


async def hold(bulkhead: Bulkhead, release: asyncio.Event) -> str:
    async with bulkhead.place(LONG):
        await release.wait()
    return "held"


async def settled() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_U34_the_queue_takes_so_many_and_no_more() -> None:
    bulkhead, release = Bulkhead(64, queue=64), asyncio.Event()
    tasks = [asyncio.create_task(hold(bulkhead, release)) for _ in range(128)]
    await settled()
    assert bulkhead.in_flight == 64
    with pytest.raises(ProviderBusy) as busy:
        async with bulkhead.place(LONG):
            pass
    assert (busy.value.code, busy.value.retry_after_seconds) == ("busy", 1)
    release.set()
    assert await asyncio.gather(*tasks) == ["held"] * 128
    assert bulkhead.in_flight == 0


async def test_U34_who_waits_too_long_is_told_so() -> None:
    bulkhead = Bulkhead(1, queue=1)
    async with bulkhead.place(LONG):
        with pytest.raises(ProviderBusy):
            async with bulkhead.place(0.01):
                pass
        assert bulkhead.in_flight == 1
    async with bulkhead.place(LONG):
        assert bulkhead.in_flight == 1


async def test_U36_a_cancelled_holder_and_a_cancelled_waiter_free_their_places() -> (
    None
):
    bulkhead, release = Bulkhead(1, queue=1), asyncio.Event()
    holder, waiter = (asyncio.create_task(hold(bulkhead, release)) for _ in range(2))
    await settled()
    waiter.cancel()
    await settled()
    next_in_line = asyncio.create_task(hold(bulkhead, release))
    await settled()
    holder.cancel()
    await settled()
    assert bulkhead.in_flight == 1
    release.set()
    assert await next_in_line == "held"
    outcomes = await asyncio.gather(holder, waiter, return_exceptions=True)
    assert all(isinstance(found, asyncio.CancelledError) for found in outcomes)
    assert bulkhead.in_flight == 0


async def test_places_are_given_in_the_order_of_arrival() -> None:
    bulkhead, order = Bulkhead(1, queue=10), list[int]()

    async def note(number: int) -> None:
        async with bulkhead.place(LONG):
            order.append(number)

    async with AsyncExitStack() as held:
        await held.enter_async_context(bulkhead.place(LONG))
        tasks = [asyncio.create_task(note(number)) for number in range(5)]
        await settled()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
