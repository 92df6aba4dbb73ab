"""Which updates of a round are out of proportion: pure, from the lengths of all of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Final

#: Of two updates nobody can say which is the odd one.
FEWEST: Final = 3


def norm_outliers(norms: Mapping[str, float], max_ratio: float) -> dict[str, float]:
    """The clients whose update is longer than `max_ratio` times the cohort's median.

    The median is taken over updates that move anything: one of norm 0 does no harm, and many of them (a cohort
    that has converged, or clients that send nothing to make the others look large) give no measure. Of two
    norms in the middle the smaller counts, so that half of a cohort can't raise it.

    Args:
        norms: client id to the L2 norm of its update, at least 0; infinite is allowed.
        max_ratio: at least 1.

    Returns:
        client id to its norm over the median, in client order; empty when fewer than 3 updates move anything.

    Raises:
        ValueError: `max_ratio` is below 1, or a norm is negative or NaN.
    """
    if not max_ratio >= 1:
        raise ValueError(f"max_ratio must be at least 1, not {max_ratio}")
    if bad := sorted(client_id for client_id, norm in norms.items() if not norm >= 0):
        raise ValueError(f"a norm is at least 0: {bad[0]!r} has {norms[bad[0]]}")
    moving = [norm for norm in norms.values() if norm > 0]
    if len(moving) < FEWEST:
        return {}
    median = statistics.median_low(moving)
    return {client_id: norm / median for client_id, norm in sorted(norms.items()) if norm > max_ratio * median}
