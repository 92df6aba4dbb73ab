"""Norm clipping: the weighted sum of deltas none of which is longer than a bound."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.distances import squared_norm
from server.aggregation.ordering import ordered_with_shares
from server.aggregation.weighted_sum import WeightedSum


class NormClipping:
    """``value + sum_k weight_k * delta_k * min(1, bound / |delta_k|)``, with the L2 norm over the slot.

    As in Sun et al., 2019 (arXiv:1911.07963). It limits how far one client can move a slot and leaves its direction:
    f bad clients of n take away, in the worst case, what f others add. With an infinite bound it is the weighted sum.
    One client moves the slot by its own weighted delta, which a given bound still clips.

    Args:
        bound: longest delta of a slot; left out, the median of the cohort's norms in that slot (of two in the
            middle the smaller, so that half of the clients can't raise it). A median of 0 keeps the slot where it is.
        pool: the threads that work; a pool of its own by default.
    """

    def __init__(self, bound: float | None = None, pool: BlockPool | None = None) -> None:
        self._bound = bound
        self._pool = pool or BlockPool()
        self._sum = WeightedSum(self._pool)

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`; weights must be positive."""
        in_order = ordered_with_shares(value, updates)
        norms = [math.sqrt(squared_norm(update.delta, value.numel(), self._pool)) for update in in_order]
        bound = statistics.median_low(norms) if self._bound is None else self._bound
        clipped = [
            update if norm <= bound else replace(update, weight=update.weight * (bound / norm))
            for update, norm in zip(in_order, norms, strict=True)
        ]
        return self._sum.reduce(value, clipped)
