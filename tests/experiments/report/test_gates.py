"""The section on gates."""

from __future__ import annotations

import pytest

from experiments.report.gates import gate_distances
from experiments.report.results import GateState


def gates(**tasks: dict[str, list[float]]) -> dict[str, dict[str, GateState]]:
    return {t: {g: GateState(load=load, entropy=0.5) for g, load in own.items()} for t, own in tasks.items()}


def test_gates_of_the_tasks_own_are_0_apart_when_equal_and_1_when_disjoint() -> None:
    equal = gates(a={"a": [0.25, 0.75]}, b={"b": [0.25, 0.75]})
    disjoint = gates(a={"a": [1.0, 0.0]}, b={"b": [0.0, 1.0]})
    assert gate_distances(equal) == {"a and b": pytest.approx(0.0)}
    assert gate_distances(disjoint) == {"a and b": pytest.approx(1.0)}


def test_only_gates_over_the_same_experts_are_compared() -> None:
    ple = gates(
        a={"0.own.a": [0.5, 0.5], "0.shared": [0.2, 0.3, 0.5]}, b={"0.own.b": [0.9, 0.1], "0.shared": [0.5, 0.3, 0.2]}
    )
    assert list(gate_distances(ple)) == ["a and b, 0.shared"]


def test_three_tasks_make_three_pairs() -> None:
    three = gates(a={"a": [1.0, 0.0]}, b={"b": [0.5, 0.5]}, c={"c": [0.0, 1.0]})
    found = gate_distances(three)
    assert list(found) == ["a and b", "a and c", "b and c"]
    assert found["a and b"] == pytest.approx(found["b and c"])
    assert found["a and b"] < found["a and c"]
