"""The coordinate-wise trimmed mean: each element moves by the mean of its deltas without the extreme ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from common.tensors import Array
from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.coordinates import move_by_centres
from server.aggregation.ordering import ordered_with_shares


class TrimmedMean:
    """``value + S * trimmed mean of delta_k`` for each element, with ``S`` the sum of the weights.

    Algorithm 1, option II, of Yin et al., 2018 (arXiv:1803.01498): of n deltas the largest and the smallest
    ``ceil(trim * n)`` are left out, element by element, and the rest averaged by their renormalised weights. Deltas
    that are equal at the cut share it: each of them loses the same part of its weight.

    Clients are cut by number and not by weight, so what remains lies between honest values as long as at most
    ``ceil(trim * n)`` clients are bad, whatever numbers of examples they claim. The cut is limited to
    ``(n - 1) // 2``: one delta, or the two in the middle, always remain; with one or two clients nothing is cut.

    Args:
        trim: share of the clients cut at each end, at least 0 and below 0.5.
        pool: the threads that work; a pool of its own by default.
    """

    def __init__(self, trim: float, pool: BlockPool | None = None) -> None:
        if not 0 <= trim < 0.5:
            raise ValueError(f"trim must be at least 0 and below 0.5, not {trim}")
        self._trim = trim
        self._pool = pool or BlockPool()

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`; weights must be positive."""
        in_order = ordered_with_shares(value, updates)
        weights = [update.weight for update in in_order]
        cut = num_cut(self._trim, len(weights))
        return move_by_centres(value, in_order, lambda rows: trimmed_mean(rows, weights, cut), self._pool)


def num_cut(trim: float, num_clients: int) -> int:
    """How many clients are left out at each end."""
    # 0.07 * 100 is a little more than 7.
    return min(math.ceil(trim * num_clients - 1e-9), (num_clients - 1) // 2)


def trimmed_mean(rows: Array, weights: Sequence[float], cut: int) -> Array:
    """The weighted mean of each column without its `cut` smallest and `cut` largest values.

    Args:
        rows: float64, shape ``(k, n)``.
        weights: k positive numbers.
        cut: at most ``(k - 1) // 2``.

    Returns:
        float64, shape ``(n,)``.
    """
    columns = rows.T.copy()
    columns.sort(axis=1)
    low, high = columns[:, cut].copy(), columns[:, len(rows) - 1 - cut].copy()
    is_low, is_high = rows == low, rows == high
    # Of the values equal to a bound, the part that is left when `cut` values are gone on its side.
    at_low = (_count(rows <= low) - cut) / _count(is_low)
    at_high = (_count(rows >= high) - cut) / _count(is_high)
    kept = np.where(is_low, at_low, np.where(is_high, at_high, (rows > low) & (rows < high)))
    kept *= np.array(weights)[:, None]
    weight_kept = np.add.reduce(kept, axis=0)
    kept *= rows
    return np.where(low == high, low, np.add.reduce(kept, axis=0) / weight_kept)


def _count(which: Array) -> Array:
    """How often each column is true."""
    count: Array = np.add.reduce(which, axis=0, dtype=np.int32)
    return count
