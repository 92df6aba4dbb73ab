"""How long a round's training may take."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeBudget:
    """Seconds that count from now on.

    Args:
        seconds: how many; None for no end.
        clock: tells the time in seconds; only differences matter.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    def used_up(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and self._clock() >= self._end
