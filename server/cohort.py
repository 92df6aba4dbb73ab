"""Which clients are asked in a round: a choice that follows from (seed, round, who is connected) alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from common.seeds import derive_random


@dataclass(frozen=True, slots=True)
class Cohort:
    """The clients of a round.

    Attributes:
        clients: who is asked.
        wanted: so many updates suffice; None waits for everybody asked.
    """

    clients: frozenset[str]
    wanted: int | None = None


def sample_cohort(
    connected: Iterable[str],
    *,
    seed: int,
    round_id: int,
    fraction: float | None,
    count: int | None,
    over_selection: float = 0.0,
) -> Cohort:
    """Draw a round's cohort without replacement.

    Args:
        connected: client ids; their order does not matter.
        seed: the run's root seed.
        round_id: the round, so that a repeated or resumed round asks the same clients.
        fraction: share of the connected clients, rounded up; or
        count: their number at most. With neither, everybody.
        over_selection: share of further clients to ask, rounded up; the first updates to come are then enough.
    """
    candidates = sorted(connected)
    if fraction is not None:
        # Without the rounding error of the product: 0.07 * 100 is a little more than 7.
        count = math.ceil(fraction * len(candidates) - 1e-9)
    if count is None or count >= len(candidates):
        return Cohort(frozenset(candidates))
    asked = min(len(candidates), count + math.ceil(over_selection * count - 1e-9))
    drawn = frozenset(derive_random(seed, "cohort", round_id).sample(candidates, asked))
    return Cohort(drawn, count if asked > count else None)
