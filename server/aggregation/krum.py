"""Krum: a slot moves by the one delta that has the closest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from common.tensors import Array
from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.distances import squared_distances
from server.aggregation.ordering import ordered_with_shares, total_weight
from server.aggregation.weighted_sum import WeightedSum


class Krum:
    """``value + S * delta_i`` with the delta of the smallest score, and ``S`` the sum of the weights.

    The score of a delta is the sum of its squared distances to its ``n - f - 2`` closest neighbours (Blanchard et
    al., 2017, arXiv:1703.02757); of equal scores the first client id's is taken. Weights play no part in the choice.
    The paper's guarantee needs ``n > 2 f + 2`` clients for f bad ones. With fewer the score is still defined, by one
    neighbour at least: one client moves the slot by its own weighted delta, and of two the first is taken.

    The choice is made slot by slot, so different slots may follow different clients.

    Args:
        byzantine: f, how many bad clients a round may hold.
        pool: the threads that work; a pool of its own by default.
    """

    def __init__(self, byzantine: int, pool: BlockPool | None = None) -> None:
        self._byzantine = byzantine
        self._pool = pool or BlockPool()
        self._sum = WeightedSum(self._pool)

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`; weights must be positive."""
        in_order = ordered_with_shares(value, updates)
        distances = squared_distances(in_order, value.numel(), self._pool)
        best = by_score(distances, self._byzantine)[0]
        return self._sum.reduce(value, [replace(in_order[best], weight=total_weight(in_order))])


def num_neighbours(num_clients: int, byzantine: int) -> int:
    """How many neighbours a score counts: ``n - f - 2``, but one at least where there is one."""
    return min(max(1, num_clients - byzantine - 2), num_clients - 1)


def by_score(distances: Array, byzantine: int) -> list[int]:
    """Positions of the deltas from the smallest score to the largest; of equal ones the first comes first.

    Args:
        distances: squared, shape ``(n, n)``.
        byzantine: f.
    """
    count = len(distances)
    others = [np.sort(np.delete(distances[index], index)) for index in range(count)]
    closest = num_neighbours(count, byzantine)
    with np.errstate(over="ignore"):
        scores = [float(np.add.reduce(row[:closest])) for row in others]
    return sorted(range(count), key=lambda index: (scores[index], index))
