"""Updates of made-up clients, and every method once, for the tests of aggregators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from server.aggregation import (
    Aggregator,
    BlockPool,
    CoordinateMedian,
    DenseDelta,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    SlotUpdate,
    TrimmedMean,
    WeightedSum,
)

POOL = BlockPool(2)
#: Those that stand up to bad clients.
ROBUST: dict[str, Aggregator] = {
    "coordinate_median": CoordinateMedian(POOL),
    "trimmed_mean": TrimmedMean(0.3, POOL),
    "krum": Krum(1, POOL),
    "multi_krum": MultiKrum(1, pool=POOL),
    "geometric_median": GeometricMedian(pool=POOL),
    "norm_clipping": NormClipping(pool=POOL),
}
EVERY: dict[str, Aggregator] = {
    "weighted_sum": WeightedSum(POOL),
    **ROBUST,
    "trimmed_mean_0": TrimmedMean(0.0, POOL),
    "multi_krum_2": MultiKrum(1, 2, POOL),
    "norm_clipping_1": NormClipping(1.0, POOL),
    "norm_clipping_inf": NormClipping(math.inf, POOL),
}


def update(client: str, weight: float, delta: Tensor) -> SlotUpdate:
    """A delta in memory."""
    return SlotUpdate(client, weight, 1, DenseDelta.of(delta))


def updates_of(deltas: Sequence[Tensor], weights: Sequence[float] | None = None) -> list[SlotUpdate]:
    """Clients c00, c01 ...; by default with equal weights that sum to 1."""
    given = weights or [1 / len(deltas)] * len(deltas)
    return [update(f"c{k:02}", weight, delta) for k, (weight, delta) in enumerate(zip(given, deltas, strict=True))]


def points(*values: Sequence[float]) -> list[Tensor]:
    """Small deltas, float64."""
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def moved(aggregator: Aggregator, updates: Sequence[SlotUpdate]) -> Tensor:
    """By what a float64 slot of zeros moves."""
    return aggregator.reduce(torch.zeros(updates[0].delta.shape, dtype=torch.float64), updates)
