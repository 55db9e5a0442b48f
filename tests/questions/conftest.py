"""What holds for every test of questions."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

# Longer than any of these tests takes.
_MARGIN = timedelta(minutes=2)


def until_a_day_with_time_left(now: datetime) -> timedelta:
    """How long to wait so that no midnight in UTC comes in the middle of a test."""
    midnight = (now + timedelta(days=1)).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    left = midnight - now
    # A second more: the database's clock may be a little behind.
    return left + timedelta(seconds=1) if left < _MARGIN else timedelta()


@pytest.fixture(autouse=True)
async def within_a_day() -> None:
    """Daily limits begin anew at midnight, and counts with them."""
    wait = until_a_day_with_time_left(datetime.now(UTC))
    await asyncio.sleep(wait.total_seconds())
