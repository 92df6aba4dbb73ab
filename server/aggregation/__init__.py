"""How one slot's updates become its next value: one file per method."""

from __future__ import annotations

from server.aggregation.base import Aggregator, Delta, SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.choice import AggregatorChoice, build_aggregator
from server.aggregation.config import AggregationConfig
from server.aggregation.coordinate_median import CoordinateMedian
from server.aggregation.deltas import DenseDelta, RowsDelta
from server.aggregation.geometric_median import GeometricMedian
from server.aggregation.krum import Krum
from server.aggregation.multi_krum import MultiKrum
from server.aggregation.norm_clipping import NormClipping
from server.aggregation.trimmed_mean import TrimmedMean
from server.aggregation.weighted_sum import WeightedSum

__all__ = [
    "AggregationConfig",
    "Aggregator",
    "AggregatorChoice",
    "BlockPool",
    "CoordinateMedian",
    "Delta",
    "DenseDelta",
    "GeometricMedian",
    "Krum",
    "MultiKrum",
    "NormClipping",
    "RowsDelta",
    "SlotUpdate",
    "TrimmedMean",
    "WeightedSum",
    "build_aggregator",
]
