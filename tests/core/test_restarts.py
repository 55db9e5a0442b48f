"""The pauses before restarts: none at first, then longer and longer, up to a point."""

from core.restarts import Restarts


def test_pauses_grow_up_to_a_minute_and_begin_again_after_a_long_life() -> None:
    now = 0.0
    restarts = Restarts(clock=lambda: now)

    def pause_after(life_seconds: float) -> float:
        nonlocal now
        restarts.started()
        now += life_seconds
        return restarts.pause_seconds()

    pauses = [pause_after(59) for _ in range(9)]
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [pause_after(seconds) for seconds in (60, 0, 0, 60)] == [0, 1, 2, 0]
