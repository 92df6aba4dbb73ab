"""Distance between tasks' gates: 0 where they agree, 1 where they share no expert, none where there is one gate."""

from __future__ import annotations

import pytest
import torch

from experiments.gate_distance import gate_distances
from experiments.synthetic_family import synthetic_family

LEVEL = {"shared": {"number": 2, "hidden": [4]}, "own": {"number": 1, "hidden": [4]}}


def test_gates_over_the_same_experts_are_compared_model_by_model() -> None:
    family = synthetic_family("mmoe", 3, {"experts": {"number": 2, "hidden": [4]}})
    first, second = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    found = gate_distances(family, {"first": {"first": first}, "second": {"second": second}})
    assert found == pytest.approx([1.0, 0.0])


def test_experts_of_a_tasks_own_are_no_common_ground() -> None:
    family = synthetic_family("ple", 3, {"levels": [LEVEL]})
    experts = family.build(("first", "second")).gates("first")["0.own.first"]
    own = [expert.startswith("expert.0.own.first") for expert in experts]
    assert sum(own) == 1
    weights = torch.tensor([[float(mine) for mine in own], [0.0 if mine else 0.5 for mine in own]])
    found = gate_distances(family, {"first": {"0.own.first": weights}, "second": {"0.own.second": weights}})
    assert found == pytest.approx([1.0, 0.0])


def test_levels_count_alike_and_a_shared_gate_is_no_difference() -> None:
    family = synthetic_family("ple", 3, {"levels": [LEVEL, LEVEL]})
    model = family.build(("first", "second"))
    apart, alike = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]])
    gates = {}
    for task in ("first", "second"):
        gates[task] = {name: torch.ones(1, len(experts)) for name, experts in model.gates(task).items()}
        for level, weights in enumerate((apart, alike)):
            mine = [expert.startswith(f"expert.{level}.own") for expert in model.gates(task)[f"{level}.own.{task}"]]
            # The own expert first, wherever the model has it.
            order = [mine.index(True), *(place for place, own in enumerate(mine) if not own)]
            gates[task][f"{level}.own.{task}"] = torch.zeros(1, 3).index_copy(1, torch.tensor(order), weights)
    assert gate_distances(family, gates) == pytest.approx([0.5])


def test_one_gate_for_all_tasks_has_no_distance() -> None:
    family = synthetic_family("omoe", 3, {"experts": {"number": 2, "hidden": [4]}})
    same = {"gate": torch.tensor([[0.3, 0.7]])}
    assert gate_distances(family, {"first": same, "second": same}) is None
    assert gate_distances(synthetic_family("shared_bottom", 3), {"first": {}, "second": {}}) is None
