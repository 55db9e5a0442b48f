"""Work that is done again and again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from core.db import DatabaseNotMigrated, DatabaseUnavailable
from core.periodic import repeating

SECRET_WORDS = "words of a driver that repeat a row"


def failing_first(error: Exception) -> tuple[Callable[[], Awaitable[None]], list[int]]:
    """Work whose first time fails."""
    times: list[int] = []

    async def work() -> None:
        times.append(len(times))
        if len(times) == 1:
            raise error

    return work, times


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DatabaseUnavailable(), ("WARNING", "database_unavailable")),
        (RuntimeError(SECRET_WORDS), ("ERROR", "RuntimeError")),
    ],
)
async def test_a_time_that_fails_is_told_and_followed_by_the_next(
    error: Exception, told: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    work, times = failing_first(error)
    with caplog.at_level(logging.INFO, "core.periodic"):
        async with asyncio.timeout(60), repeating("some.work", work, seconds=0.01):
            while len(times) < 3:
                await asyncio.sleep(0.001)
    (record,) = caplog.records
    fields = vars(record)
    assert record.message == "periodic.failed"
    assert fields["work"] == "some.work"
    assert (record.levelname, fields.get("code") or fields["error"]) == told
    assert SECRET_WORDS not in caplog.text


async def test_what_fails_for_the_same_reason_again_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes: list[Exception | None] = [
        *[DatabaseNotMigrated()] * 3,
        DatabaseUnavailable(),
        None,
        DatabaseUnavailable(),
        RuntimeError(),
        RuntimeError(),
    ]
    done = asyncio.Event()

    async def work() -> None:
        if not outcomes:
            done.set()
            return
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    with caplog.at_level(logging.INFO, "core.periodic"):
        async with asyncio.timeout(60), repeating("some.work", work, seconds=0.001):
            await done.wait()
    told = [vars(r).get("code") or vars(r)["error"] for r in caplog.records]
    assert told == [
        "database_not_migrated",
        *["database_unavailable"] * 2,
        # A bug is told every time.
        *["RuntimeError"] * 2,
    ]


async def test_it_ends_with_the_block_even_in_the_middle_of_its_work() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with repeating("some.work", work, seconds=60):
        await begun.wait()
    assert ended.is_set()


async def test_between_two_times_it_rests() -> None:
    times = 0

    async def work() -> None:
        nonlocal times
        times += 1

    async with repeating("counting", work, seconds=3_600):
        for _ in range(100):
            await asyncio.sleep(0)
    assert times == 1
