"""The `federation.aggregation` section: which method reduces which slots. docs/robust-aggregation.md compares them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.strict_model import StrictModel

Votes = Literal["examples", "equal"]


class WeightedSumConfig(StrictModel):
    """The sum of the deltas by task weight and share of examples: federated averaging. One bad client can ruin it."""

    method: Literal["weighted_sum"] = "weighted_sum"


class CoordinateMedianConfig(StrictModel):
    """The weighted median of each element."""

    method: Literal["coordinate_median"]
    votes: Votes = "examples"
    """`examples`: clients weigh as in the weighted sum. `equal`: all clients of a slot weigh the same, so that
    nobody gains by claiming many examples; tasks of few clients then lose their say in shared slots."""


class TrimmedMeanConfig(StrictModel):
    """The mean of each element without the largest and the smallest deltas."""

    method: Literal["trimmed_mean"]
    trim: float = Field(ge=0, lt=0.5)
    """Share of a slot's clients cut at each end, rounded up (never so many that none remains)."""
    votes: Votes = "examples"
    """How the remaining clients weigh: by their `examples`, or `equal`."""


class KrumConfig(StrictModel):
    """The one delta with the closest neighbours."""

    method: Literal["krum"]
    byzantine: int = Field(ge=0)
    """How many bad clients a round may hold; the guarantee needs more than twice that and two clients."""


class MultiKrumConfig(StrictModel):
    """The mean of the deltas with the closest neighbours."""

    method: Literal["multi_krum"]
    byzantine: int = Field(ge=0)
    """How many bad clients a round may hold; the guarantee needs more than twice that and two clients."""
    keep: int | None = Field(default=None, ge=1)
    """How many deltas are averaged; left out: the number of clients less `byzantine` and 2, at least 1."""
    votes: Votes = "examples"
    """How the kept clients weigh: by their `examples`, or `equal`."""


class GeometricMedianConfig(StrictModel):
    """The point with the smallest sum of weighted distances to all deltas."""

    method: Literal["geometric_median"]
    smoothing: float = Field(default=1e-6, gt=0, lt=1)
    """Distances below this part of the median length of the deltas count as it."""
    iterations: int = Field(default=100, ge=1)
    """Most steps of the Weiszfeld algorithm."""
    votes: Votes = "examples"
    """`examples`: clients weigh as in the weighted sum. `equal`: all clients of a slot weigh the same."""


class NormClippingConfig(StrictModel):
    """The weighted sum of deltas that are cut to a length."""

    method: Literal["norm_clipping"]
    bound: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longest delta of a slot (L2 norm); left out: the median of the round's norms in that slot."""
    votes: Votes = "examples"
    """`examples`: clients weigh as in the weighted sum. `equal`: all clients of a slot weigh the same."""


MethodConfig = Annotated[
    WeightedSumConfig
    | CoordinateMedianConfig
    | TrimmedMeanConfig
    | KrumConfig
    | MultiKrumConfig
    | GeometricMedianConfig
    | NormClippingConfig,
    Field(discriminator="method"),
]


class SlotRule(StrictModel):
    """A method for the slots of some parameters."""

    match: str = Field(min_length=1)
    """Parameter names, with `*`, `?` and `[...]` as in file names (`*` also crosses dots): `head.*`. A rule that
    fits no parameter is an error."""
    use: MethodConfig
    """The method for them."""


class AggregationConfig(StrictModel):
    """How the deltas of a slot become its next value: a method for all slots, and others for some."""

    use: MethodConfig = WeightedSumConfig()
    """The method for every slot that no rule fits; left out: `{method: weighted_sum}`."""
    per_slot: tuple[SlotRule, ...] = ()
    """Rules, such as `{match: "head.*", use: {method: norm_clipping, bound: 1.0}}`; the first that fits is taken."""
