"""The tests that compare days do not run across midnight."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.questions.conftest import until_a_day_with_time_left


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("12:00:00", 0), ("23:57:59", 0), ("23:59:30", 31), ("00:00:00", 0)],
)
def test_only_the_last_minutes_of_a_day_are_waited_out(time: str, seconds: int) -> None:
    now = datetime.fromisoformat(f"2026-11-30T{time}").replace(tzinfo=UTC)
    assert until_a_day_with_time_left(now) == timedelta(seconds=seconds)
