"""A loop that is held up shows by how much."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from server.loop_lag import LoopLag

NAME = "fedmtl_event_loop_lag_seconds"


@asynccontextmanager
async def held_up(lag: LoopLag, seconds: float) -> AsyncIterator[None]:
    """Measure, hold the loop while the first timer runs, and go on measuring."""
    measuring = asyncio.create_task(lag.measure())
    await asyncio.sleep(0)
    time.sleep(seconds)  # noqa: ASYNC251  # this is what is to be noticed
    await _come_to(lambda: lag.worst_s > 0)
    try:
        yield
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)


async def _come_to(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110  # a measurement tells nobody
            await asyncio.sleep(0)


async def test_a_held_loop_shows_in_last_worst_and_histogram() -> None:
    registry = CollectorRegistry()
    lag = LoopLag(registry, interval_s=0.001, window_s=60.0)
    assert (lag.last_s, lag.worst_s) == (0.0, 0.0)

    def measured(below: str) -> float:
        return registry.get_sample_value(f"{NAME}_bucket", {"le": below}) or 0.0

    async with held_up(lag, 0.3):
        worst = lag.worst_s
        assert 0.25 < worst == lag.last_s < 30
        assert (measured("0.25"), measured("+Inf")) == (0, 1)
        await _come_to(lambda: measured("0.25") >= 5)
        assert lag.worst_s >= worst
        await _come_to(lambda: lag.last_s < worst)


async def test_the_worst_is_forgotten_after_the_window() -> None:
    lag = LoopLag(CollectorRegistry(), interval_s=0.001, window_s=0.003)
    async with held_up(lag, 0.3):
        worst = lag.worst_s
        await _come_to(lambda: lag.worst_s < worst)
