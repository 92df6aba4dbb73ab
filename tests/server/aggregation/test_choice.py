"""Which aggregator the configuration gives to which slot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.config_file import validate
from common.errors import ConfigError
from server.aggregation import (
    AggregationConfig,
    AggregatorChoice,
    CoordinateMedian,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    TrimmedMean,
    WeightedSum,
)
from server.aggregation.equal_votes import EqualVotes
from tests.server.aggregation.made_up import points, updates_of
from tests.server.tiny_run import PLAN

SLOTS = {slot.parameter: slot for slot in PLAN.slots}


def choice(data: dict[str, Any]) -> AggregatorChoice:
    return AggregatorChoice.of(validate(AggregationConfig, data, "my.yaml"), PLAN.slots)


def test_left_out_it_is_the_weighted_sum() -> None:
    assert isinstance(choice({}).for_slot(SLOTS["body"]), WeightedSum)


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        ({"method": "weighted_sum"}, WeightedSum),
        ({"method": "coordinate_median"}, CoordinateMedian),
        ({"method": "trimmed_mean", "trim": 0.2}, TrimmedMean),
        ({"method": "krum", "byzantine": 2}, Krum),
        ({"method": "multi_krum", "byzantine": 2}, MultiKrum),
        ({"method": "geometric_median"}, GeometricMedian),
        ({"method": "norm_clipping"}, NormClipping),
        ({"method": "coordinate_median", "votes": "equal"}, EqualVotes),
    ],
)
def test_each_method_is_found_by_its_name(use: dict[str, Any], kind: type) -> None:
    assert type(choice({"use": use}).for_slot(SLOTS["body"])) is kind


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ({"method": "trimmed_mean", "trim": 0.25}, 2.5),
        ({"method": "trimmed_mean", "trim": 0.0}, 28.0),
        ({"method": "krum", "byzantine": 0}, 2.0),
        ({"method": "krum", "byzantine": 1}, 1.0),  # one neighbour each: a tie
        ({"method": "multi_krum", "byzantine": 0, "keep": 3}, 2.0),
        ({"method": "norm_clipping", "bound": 1.0}, 1.0),
    ],
)
def test_parameters_reach_the_method(use: dict[str, Any], expected: float) -> None:
    updates = updates_of(points([1.0], [2.0], [3.0], [106.0]))
    moved = choice({"use": use}).for_slot(SLOTS["body"]).reduce(torch.zeros(1), updates)
    assert moved.item() == pytest.approx(expected)


def test_the_first_rule_that_fits_is_taken() -> None:
    found = choice(
        {
            "use": {"method": "coordinate_median"},
            "per_slot": [
                {"match": "head.mood", "use": {"method": "krum", "byzantine": 1}},
                {"match": "head.*", "use": {"method": "norm_clipping"}},
                {"match": "h*", "use": {"method": "weighted_sum"}},
            ],
        }
    )
    kinds = {name: type(found.for_slot(slot)) for name, slot in SLOTS.items()}
    assert kinds["head.mood"] is Krum
    assert kinds["head.topic"] is NormClipping
    assert {kinds[name] for name in ("table", "body", "scalar")} == {CoordinateMedian}


def test_with_equal_votes_claimed_examples_buy_nothing() -> None:
    updates = updates_of(points([1.0], [2.0], [900.0]), [0.01, 0.01, 0.98])
    believed, equal = (
        choice({"use": {"method": "coordinate_median", "votes": votes}}).for_slot(SLOTS["body"])
        for votes in ("examples", "equal")
    )
    assert believed.reduce(torch.zeros(1), updates).item() == 900
    assert equal.reduce(torch.zeros(1), updates).item() == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"use": {"method": "median"}}, "use: Input tag 'median' found using 'method' does not match any"),
        ({"use": {"method": "krum"}}, "use.krum.byzantine: this key is required"),
        ({"use": {"method": "trimmed_mean"}}, "use.trimmed_mean.trim: this key is required"),
        ({"use": {"method": "trimmed_mean", "trim": 0.5}}, "use.trimmed_mean.trim: Input should be less than 0.5"),
        ({"use": {"method": "weighted_sum", "trim": 0.5}}, "use.weighted_sum.trim: unknown key"),
        ({"use": {"method": "norm_clipping", "bound": float("inf")}}, "finite number"),
        ({"use": {"method": "norm_clipping", "bound": 0}}, "greater than 0"),
        ({"use": {"method": "multi_krum", "byzantine": -1}}, "greater than or equal to 0"),
        ({"method": "krum"}, "method: unknown key; the keys here are per_slot, use"),
        (
            {"per_slot": [{"match": "heads.*", "use": {"method": "krum", "byzantine": 1}}]},
            "'heads.*' fits no parameter",
        ),
    ],
)
def test_a_mistake_is_named(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choice(data)
    assert words in str(raised.value)
