"""How late the event loop is: what a short timer tells that runs beside everything else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

from prometheus_client import CollectorRegistry, Histogram

#: Seconds. A loop that only moves frames stays in the first ones; heartbeats suffer in the last ones.
BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LoopLag:
    """Measures the loop that `measure` runs on.

    Args:
        registry: where the histogram of all measurements is registered.
        interval_s: length of the timer; something that holds the loop for less may go unnoticed.
        window_s: how far back `worst_s` looks.

    Attributes:
        last_s: how late the newest timer was, in seconds.
    """

    def __init__(self, registry: CollectorRegistry, *, interval_s: float = 0.1, window_s: float = 60.0) -> None:
        self.last_s = 0.0
        self._interval_s = interval_s
        self._recent: deque[float] = deque(maxlen=max(1, round(window_s / interval_s)))
        self._histogram = Histogram(
            "fedmtl_event_loop_lag_seconds",
            "How late a short timer of the event loop was.",
            buckets=BUCKETS,
            registry=registry,
        )

    @property
    def worst_s(self) -> float:
        """The latest of the window's timers, in seconds; 0 before the first."""
        return max(self._recent, default=0.0)

    async def measure(self) -> None:
        """Measure until cancelled."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(self._interval_s)
            # The loop's own clock counts milliseconds, so a timer may also be early by a part of one.
            self.last_s = max(0.0, time.perf_counter() - began - self._interval_s)
            self._recent.append(self.last_s)
            self._histogram.observe(self.last_s)
