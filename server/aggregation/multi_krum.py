"""Multi-Krum: a slot moves by the mean of the deltas that have the closest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.distances import squared_distances
from server.aggregation.krum import by_score
from server.aggregation.ordering import ordered_with_shares, total_weight
from server.aggregation.weighted_sum import WeightedSum


class MultiKrum:
    """``value + S * (weighted mean of the m deltas of the smallest Krum scores)``, ``S`` the sum of the weights.

    Blanchard et al., 2017 (arXiv:1703.02757), with the mean weighted by the renormalised weights of the
    kept. m = 1 is Krum; m = n is the plain weighted sum. See `server.aggregation.krum.Krum` for the scores, and for
    what happens with few clients; at least one delta and at most all of them are kept.

    Args:
        byzantine: f, how many bad clients a round may hold.
        keep: m; by default ``n - f - 2``, as many as a score counts neighbours.
        pool: the threads that work; a pool of its own by default.
    """

    def __init__(self, byzantine: int, keep: int | None = None, pool: BlockPool | None = None) -> None:
        self._byzantine = byzantine
        self._keep = keep
        self._pool = pool or BlockPool()
        self._sum = WeightedSum(self._pool)

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`; weights must be positive."""
        in_order = ordered_with_shares(value, updates)
        keep = max(1, len(in_order) - self._byzantine - 2) if self._keep is None else self._keep
        if keep >= len(in_order):
            return self._sum.reduce(value, in_order)
        distances = squared_distances(in_order, value.numel(), self._pool)
        kept = [in_order[index] for index in by_score(distances, self._byzantine)[:keep]]
        scale = total_weight(in_order) / total_weight(kept)
        return self._sum.reduce(value, [replace(update, weight=update.weight * scale) for update in kept])
