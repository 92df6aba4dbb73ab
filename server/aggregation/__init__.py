"""How one slot's updates become its next value: one file per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from common.errors import ConfigError
from server.aggregation.base import Aggregator, Delta, SlotUpdate
from server.aggregation.deltas import DenseDelta, RowsDelta
from server.aggregation.weighted_sum import WeightedSum

AGGREGATORS: Final[Mapping[str, Callable[[], Aggregator]]] = MappingProxyType({"weighted_sum": WeightedSum})


def build_aggregator(name: str = "weighted_sum") -> Aggregator:
    """The aggregator of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in AGGREGATORS:
        raise ConfigError(f"aggregator {name!r} is not known; allowed are {sorted(AGGREGATORS)}")
    return AGGREGATORS[name]()


__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Delta",
    "DenseDelta",
    "RowsDelta",
    "SlotUpdate",
    "WeightedSum",
    "build_aggregator",
]
