"""From the configuration to the aggregator of each slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from common.errors import ConfigError
from common.plan import Slot
from server.aggregation.base import Aggregator
from server.aggregation.blocks import BlockPool
from server.aggregation.config import (
    AggregationConfig,
    CoordinateMedianConfig,
    GeometricMedianConfig,
    KrumConfig,
    MethodConfig,
    MultiKrumConfig,
    NormClippingConfig,
    TrimmedMeanConfig,
    WeightedSumConfig,
)
from server.aggregation.coordinate_median import CoordinateMedian
from server.aggregation.equal_votes import EqualVotes
from server.aggregation.geometric_median import GeometricMedian
from server.aggregation.krum import Krum
from server.aggregation.multi_krum import MultiKrum
from server.aggregation.norm_clipping import NormClipping
from server.aggregation.trimmed_mean import TrimmedMean
from server.aggregation.weighted_sum import WeightedSum


@dataclass(frozen=True)
class AggregatorChoice:
    """Which aggregator reduces which slot.

    Attributes:
        default: for slots that no rule fits.
        rules: patterns of parameter names and their aggregators; the first that fits is taken.
    """

    default: Aggregator
    rules: Sequence[tuple[str, Aggregator]] = ()

    @classmethod
    def of(cls, config: AggregationConfig, slots: Iterable[Slot] | None = None) -> AggregatorChoice:
        """Build what the configuration names; all aggregators share one pool of threads.

        Args:
            config: the section `federation.aggregation`.
            slots: those of the plan, to refuse a rule that fits none of them; not checked when left out.

        Raises:
            ConfigError: such a rule.
        """
        pool = BlockPool()
        rules = tuple((rule.match, build_aggregator(rule.use, pool)) for rule in config.per_slot)
        if slots is not None:
            _require_use(config, slots)
        return cls(build_aggregator(config.use, pool), rules)

    def for_slot(self, slot: Slot) -> Aggregator:
        """The aggregator of one slot."""
        for pattern, aggregator in self.rules:
            if fnmatchcase(slot.parameter, pattern):
                return aggregator
        return self.default


def build_aggregator(config: MethodConfig, pool: BlockPool | None = None) -> Aggregator:
    """The aggregator that `config` describes, on the threads of `pool` (default: a pool of its own)."""
    match config:
        case WeightedSumConfig() | KrumConfig():
            return _build(config, pool)
        case _:
            aggregator = _build(config, pool)
            return EqualVotes(aggregator) if config.votes == "equal" else aggregator


def _build(config: MethodConfig, pool: BlockPool | None) -> Aggregator:
    match config:
        case WeightedSumConfig():
            return WeightedSum(pool)
        case CoordinateMedianConfig():
            return CoordinateMedian(pool)
        case TrimmedMeanConfig():
            return TrimmedMean(config.trim, pool)
        case KrumConfig():
            return Krum(config.byzantine, pool)
        case MultiKrumConfig():
            return MultiKrum(config.byzantine, config.keep, pool)
        case GeometricMedianConfig():
            return GeometricMedian(config.smoothing, config.iterations, pool)
        case NormClippingConfig():
            return NormClipping(config.bound, pool)


def _require_use(config: AggregationConfig, slots: Iterable[Slot]) -> None:
    parameters = sorted({slot.parameter for slot in slots if slot.residence == "server"})
    for position, rule in enumerate(config.per_slot):
        if not any(fnmatchcase(name, rule.match) for name in parameters):
            shown = ", ".join(parameters[:5]) + (f" and {len(parameters) - 5} more" if len(parameters) > 5 else "")
            raise ConfigError(
                f"federation.aggregation.per_slot.{position}.match: {rule.match!r} fits no parameter that the server "
                f"holds; there are {shown}"
            )
