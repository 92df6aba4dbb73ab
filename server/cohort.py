"""Which clients are asked in a round: a choice that follows from (seed, round, who is connected) alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

from common.seeds import derive_random


def sample_cohort(
    connected: Iterable[str], *, seed: int, round_id: int, fraction: float | None, count: int | None
) -> frozenset[str]:
    """Draw a round's cohort without replacement.

    Args:
        connected: client ids; their order does not matter.
        seed: the run's root seed.
        round_id: the round, so that a repeated or resumed round asks the same clients.
        fraction: share of the connected clients, rounded up; or
        count: their number at most. With neither, everybody.
    """
    candidates = sorted(connected)
    if fraction is not None:
        # Without the rounding error of the product: 0.07 * 100 is a little more than 7.
        count = math.ceil(fraction * len(candidates) - 1e-9)
    if count is None or count >= len(candidates):
        return frozenset(candidates)
    return frozenset(derive_random(seed, "cohort", round_id).sample(candidates, count))
