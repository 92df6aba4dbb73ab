"""The geometric median: a slot moves by the point whose weighted distances to all deltas are smallest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from torch import Tensor

from common.tensors import Array
from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.distances import gram_matrix
from server.aggregation.ordering import ordered_with_shares, total_weight
from server.aggregation.weighted_sum import WeightedSum

#: Coefficients that change by less than this part of themselves have arrived. Not by this absolute amount: that of
#: an outlier of length 1e38 has to fall to 1e-38.
_TOLERANCE: Final = 1e-9
#: Squared lengths from here on count as infinite: their differences would not be finite.
_TOO_LONG: Final = 1e300
_SHORTEST: Final = 1e-150


class GeometricMedian:
    """``value + S * v`` with ``v`` minimising ``sum_k weight_k * |delta_k - v|``, ``S`` the sum of the weights.

    The smoothed Weiszfeld algorithm of RFA (Pillutla et al., 2019, arXiv:1912.13445): from the weighted mean, again and
    again the mean with weights ``weight_k / max(nu, |delta_k - v|)``. ``v`` stays a combination of the deltas, so it is
    the coefficients that are iterated, with the deltas' inner products: deltas are read twice, however many steps it
    takes. It holds against bad clients with less than half of the weight. A delta of a float64 slot longer than 1e150
    counts as infinitely far away.

    Args:
        smoothing: nu in units of the median length of the deltas: closer than this all deltas pull alike.
        iterations: most steps; it ends earlier when the coefficients stand still. Steps get short where the best point
            lies next to a delta; after 100 the sum of distances still is within some thousandths of the smallest.
        pool: the threads that work; a pool of its own by default.
    """

    def __init__(self, smoothing: float = 1e-6, iterations: int = 100, pool: BlockPool | None = None) -> None:
        self._smoothing = smoothing
        self._iterations = iterations
        self._pool = pool or BlockPool()
        self._sum = WeightedSum(self._pool)

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`; weights must be positive."""
        in_order = ordered_with_shares(value, updates)
        if len(in_order) == 1:
            return self._sum.reduce(value, in_order)
        gram = gram_matrix(in_order, value.numel(), self._pool)
        near = np.flatnonzero(gram.diagonal() < _TOO_LONG)
        if not len(near):
            return self._sum.reduce(value, in_order)
        shares = np.array([in_order[index].weight for index in near])
        found = weiszfeld(gram[np.ix_(near, near)], shares, self._smoothing, self._iterations)
        total = total_weight(in_order)
        moving = zip(near, found, strict=True)
        return self._sum.reduce(value, [replace(in_order[k], weight=total * float(c)) for k, c in moving])


def weiszfeld(gram: Array, weights: Array, smoothing: float, iterations: int) -> Array:
    """Coefficients of the geometric median of n points.

    Args:
        gram: inner products of the points, shape ``(n, n)``.
        weights: positive, shape ``(n,)``.
        smoothing: the smallest distance that counts, in units of the median length.
        iterations: most steps.

    Returns:
        float64, shape ``(n,)``, at least 0, together 1.
    """
    squares = gram.diagonal()
    nearest = max(smoothing * statistics.median_low(map(math.sqrt, squares)), _SHORTEST)
    coefficients: Array = weights / weights.sum()
    for _ in range(iterations):
        # |x_i - v|^2 with v = sum_j c_j x_j. An outlier's coefficient is about one over its length, so its large
        # products do not drown the others.
        along = (gram * coefficients).sum(axis=1)
        distances = np.sqrt(np.maximum(squares - 2 * along + (coefficients * along).sum(), 0))
        pulls = weights / np.maximum(distances, nearest)
        before, coefficients = coefficients, pulls / pulls.sum()
        if (np.abs(coefficients - before) <= _TOLERANCE * coefficients).all():
            break
    return coefficients
