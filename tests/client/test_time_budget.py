"""A time budget, by a clock that the test sets."""

from __future__ import annotations

from client.time_budget import TimeBudget


def test_seconds_count_from_the_beginning() -> None:
    now = [100.0]
    budget = TimeBudget(5.0, lambda: now[0])
    endless = TimeBudget(None, lambda: now[0])
    for seconds, over in ((100.0, False), (104.9, False), (105.0, True), (200.0, True)):
        now[0] = seconds
        assert budget.used_up() is over
        assert not endless.used_up()
