"""Which inputs go to which expert."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.data.examples import Examples
from common.families.base import GateUse, MultiTaskModel, TrainingPass
from experiments.specialisation import Coded, by_expert, categories, gate_weights, quartiles, specialise
from tests.common.families.cases import CASES, family_of
from tests.common.families.tabular import batch, loaded, tabular


class TwoGates(MultiTaskModel):
    """One task whose gate looks at the first input, and another whose gate looks at nothing."""

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        weights = {task: self.weights(task, batch["features"][rows]) for task, rows in parts.items()}
        uses = {t: {"gate": GateUse(w.sum(0), torch.special.entr(w).sum())} for t, w in weights.items()}
        return TrainingPass({task: w[:, 0] for task, w in weights.items()}, None, uses)

    @staticmethod
    def weights(task: str, features: Tensor) -> Tensor:
        zeros = torch.zeros_like(features[:, 0])
        return torch.softmax(torch.stack([features[:, 0] if task == "looks" else zeros, zeros], dim=-1), dim=-1)

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:
        return {"gate": ("expert.0", "expert.1")} if task in ("looks", "blind") else {}


def test_every_rows_weights_are_told_though_a_pass_tells_their_sum() -> None:
    batch = {"features": torch.randn(7, 3, generator=torch.Generator().manual_seed(0))}
    found = gate_weights(TwoGates(), "looks", batch)
    torch.testing.assert_close(found["gate"], TwoGates.weights("looks", batch["features"]))


def test_a_task_without_gates_has_no_weights() -> None:
    assert gate_weights(TwoGates(), "none", {"features": torch.zeros(2, 3)}) == {}


@pytest.mark.parametrize("case", [name for name, (family, _) in CASES.items() if family in ("omoe", "mmoe", "ple")])
def test_every_family_with_experts_tells_each_rows_weights(case: str) -> None:
    model, rows = loaded(family_of(case)).eval(), batch(9)
    found = gate_weights(model, "b", rows)
    uses = model.training_pass({"b": slice(0, 9)}, rows).gates["b"]
    assert found.keys() == uses.keys() == model.gates("b").keys()
    for gate, weights in found.items():
        torch.testing.assert_close(weights.sum(0), uses[gate].mass)
        torch.testing.assert_close(weights.sum(1), torch.ones(9))
        assert len({tuple(row) for row in weights.tolist()}) == 9


def examples(**columns: Any) -> Examples:  # noqa: ANN401  # columns of any kind
    count = len(next(iter(columns.values())))
    return Examples("b", "test", columns, np.zeros(count, dtype=np.int64), np.arange(1, count + 1), "here")


def test_a_gate_that_was_made_to_look_at_a_category_is_caught_at_it() -> None:
    family = tabular("mmoe", categorical={"letter": ["x", "y"]}, experts={"number": 3, "hidden": [5]})
    model = loaded(family)
    assert family.feature_columns == ("one", "two", "letter")
    with torch.no_grad():
        weight = model.get_parameter("gate.b.weight")
        weight.zero_()
        weight[1, 5] = 3.0  # expert 1, the input that says y: four of the numeric columns come first, and x
    letters = ["x", "y", "?", "y"] * 40
    rows = examples(one=np.arange(160, dtype=np.float64), two=np.zeros(160), letter=letters)
    first, second, third = specialise(model, family, "b", rows)["b"]["experts"]
    chosen, other = math.exp(3) / (math.exp(3) + 2), 1 / 3
    assert second["expert"] == "expert.1"
    assert second["load"] == pytest.approx((chosen + other) / 2, rel=1e-5)
    lift = pytest.approx(chosen / second["load"], rel=1e-5)
    assert second["top"][0] == {"column": "letter", "value": "y", "lift": lift, "share": 0.5, "rows": 80}
    assert {top["value"] for top in first["top"] if top["column"] == "letter"} == {"x", "missing"}
    assert first["load"] == pytest.approx(third["load"])
    assert model.training


def test_a_family_without_gates_has_no_specialisation() -> None:
    family = family_of("shared_bottom")
    assert specialise(loaded(family), family, "b", examples(one=np.zeros(3), two=np.zeros(3))) == {}


def two_values(shares: tuple[float, float], rows: int = 100) -> tuple[np.ndarray, Coded]:
    """Weights of two experts where the first gets these shares of the rows with values a and b."""
    codes = np.repeat([0, 1], rows)
    first = np.array(shares)[codes]
    return np.stack([first, 1 - first], axis=1), Coded("letter", ["a", "b"], codes)


def test_the_lift_is_the_mean_weight_there_by_the_mean_weight_everywhere() -> None:
    weights, column = two_values((0.9, 0.3))
    first, second = by_expert(weights, [column], ["expert.0", "expert.1"])
    assert first["load"] == pytest.approx(0.6)
    assert first["top"] == [
        {"column": "letter", "value": "a", "lift": pytest.approx(1.5), "share": pytest.approx(0.5), "rows": 100}
    ]
    assert second["expert"] == "expert.1"
    assert [(top["value"], top["lift"]) for top in second["top"]] == [("b", pytest.approx(1.75))]


def test_a_gate_that_looks_at_nothing_prefers_nothing() -> None:
    weights, column = two_values((0.5, 0.5))
    assert [expert["top"] for expert in by_expert(weights, [column], ["e0", "e1"])] == [[], []]


def test_values_of_few_rows_are_left_out() -> None:
    weights, column = two_values((0.9, 0.3), rows=29)
    assert by_expert(weights, [column], ["e0", "e1"])[0]["top"] == []


def test_the_highest_lifts_come_first_and_no_more_than_asked_for() -> None:
    codes = np.repeat(np.arange(4), 50)
    first = np.array([0.1, 0.8, 0.6, 0.5])[codes]
    column = Coded("c", ["a", "b", "c", "d"], codes)
    top = by_expert(np.stack([first, 1 - first], axis=1), [column], ["e0", "e1"], top=2)[0]["top"]
    assert [value["value"] for value in top] == ["b", "c"]


def test_an_expert_that_no_row_uses_has_no_values() -> None:
    weights, column = two_values((1.0, 1.0))
    unused = by_expert(weights, [column], ["e0", "e1"])[1]
    assert (unused["load"], unused["top"]) == (0.0, [])


def test_categories_are_numbered_as_met() -> None:
    found = categories("c", ["x", "y", "x"])
    assert (found.values, found.codes.tolist()) == (["x", "y"], [0, 1, 0])


def test_numbers_are_cut_at_their_quartiles_with_missing_ones_apart() -> None:
    found = quartiles("age", np.array([*range(1, 9), math.nan], dtype=np.float64))
    assert found.values == ["up to 2", "above 2, up to 4", "above 4, up to 6", "above 6", "missing"]
    assert np.bincount(found.codes).tolist() == [2, 2, 2, 2, 1]


def test_a_number_that_most_rows_have_is_a_range_of_its_own() -> None:
    found = quartiles("gain", np.array([0.0] * 9 + [5000.0]))
    assert found.values == ["up to 0", "above 0", "missing"]
    assert found.codes.tolist() == [0] * 9 + [1]


@pytest.mark.parametrize(("numbers", "value"), [([3.0, 3.0], "3"), ([math.nan, math.nan], "missing")])
def test_a_column_of_one_value_has_one_category(numbers: list[float], value: str) -> None:
    found = quartiles("c", np.array(numbers))
    assert {found.values[code] for code in found.codes.tolist()} == {value}
