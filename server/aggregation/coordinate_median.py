"""The coordinate-wise median: each element moves by the weighted median of its deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from torch import Tensor

from common.tensors import Array
from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.coordinates import move_by_centres
from server.aggregation.ordering import ordered_with_shares, total_weight

#: Weights are counted in whole votes: their sums are exact, whatever the order in which they are added.
_VOTES: Final = 2.0**40


class CoordinateMedian:
    """``value + S * median_k delta_k`` for each element, with ``S`` the sum of the weights.

    Algorithm 1, option I, of Yin et al., 2018 (arXiv:1803.01498), with weights: the median is the value at which
    half of the weight lies on either side, and the mean of two neighbours where the halves part between them (so
    with equal weights it is the plain median). It holds against bad clients with less than half of the weight.
    One client moves the slot by its own weighted delta; two of different weight by the heavier one's.

    Args:
        pool: the threads that work; a pool of its own by default.
    """

    def __init__(self, pool: BlockPool | None = None) -> None:
        self._pool = pool or BlockPool()

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`; weights must be positive."""
        in_order = ordered_with_shares(value, updates)
        shares = np.array([update.weight for update in in_order]) / total_weight(in_order)
        votes = np.rint(shares * _VOTES)
        return move_by_centres(value, in_order, lambda rows: weighted_median(rows, votes), self._pool)


def weighted_median(rows: Array, votes: Array) -> Array:
    """The median of each column.

    Args:
        rows: float64, shape ``(k, n)``.
        votes: whole numbers in float64, shape ``(k,)``, together far more than k and at most 2**52.

    Returns:
        float64, shape ``(n,)``.
    """
    columns = np.ascontiguousarray(rows.T)
    order = np.argsort(columns, axis=1)
    # A weight is off by half a vote at most, so a sum this close to the half is meant to be it.
    half, slack = votes.sum() / 2, float(len(votes))
    each = np.arange(len(columns))
    reached, lower, upper = np.zeros(len(each)), np.zeros_like(each), np.zeros_like(each)
    for positions in np.ascontiguousarray(order.T):  # the smallest of each column, then the next
        reached += votes[positions]
        lower += reached < half - slack
        upper += reached <= half + slack
    medians: Array = 0.5 * columns[each, order[each, lower]] + 0.5 * columns[each, order[each, upper]]
    return medians
