"""When to try again after a lost connection: exponential delays with jitter, for as long as one is told."""

from __future__ import annotations

import secrets
from typing import Final

FIRST_S: Final = 0.25
LONGEST_S: Final = 10.0
#: More than an attempt to connect can take. What seems to have taken longer was a suspended process or machine.
ATTEMPT_S: Final = 30.0


class Backoff:
    """Delays between attempts.

    Args:
        patience_s: how long after the last good connection (or the start) to go on trying. Time in which this process
            was suspended, as by a laptop's sleep, does not count: nothing was tried in it.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._attempt = 0
        self._tried_s = 0.0
        self._last: tuple[float, float] | None = None
        # Jitter keeps many clients from coming back at the same instant; it need not be reproducible.
        self._random = secrets.SystemRandom()

    def reset(self) -> None:
        """A connection was good; patience begins anew when it is lost."""
        self._attempt = 0
        self._tried_s = 0.0
        self._last = None

    def next(self, now: float) -> float | None:
        """Seconds to wait before the next attempt, or None when patience is at its end.

        Args:
            now: the present on any clock that only goes forward, in seconds.
        """
        if self._last is not None:
            before, delay = self._last
            self._tried_s += min(now - before, delay + ATTEMPT_S)
        left = self._patience_s - self._tried_s
        if left <= 0:
            return None
        ceiling = min(LONGEST_S, FIRST_S * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        delay = min(left, self._random.uniform(ceiling / 2, ceiling))
        self._last = (now, delay)
        return delay
