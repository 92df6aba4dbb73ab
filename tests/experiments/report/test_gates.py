"""The section on gates."""

from __future__ import annotations

import pytest

from experiments.report.gates import gate_distances, gates_section
from experiments.report.groups import grouped
from experiments.report.markup import Figure
from experiments.report.results import GateDistance, GateState, Point, TrainResult
from tests.experiments.report.samples import train


def gates(**tasks: dict[str, list[float]]) -> Point:
    states = {t: {g: GateState(load=load, entropy=0.5) for g, load in own.items()} for t, own in tasks.items()}
    return Point(epoch=1, gates=states)


def test_distances_that_a_result_has_are_taken_from_it() -> None:
    point = gates(a={"a": [0.5, 0.5]}, b={"b": [0.5, 0.5]})
    told = [
        GateDistance(tasks=("a", "b"), gates=("a", "b"), distance=0.25),
        GateDistance(tasks=("a", "b"), gates=("0.shared", "0.shared"), distance=0.5),
    ]
    found = gate_distances(point.model_copy(update={"gate_distances": told}))
    assert found == {"a and b": 0.25, "a and b, 0.shared": 0.5}


def test_gates_of_the_tasks_own_are_0_apart_when_equal_and_1_when_disjoint() -> None:
    equal = gates(a={"a": [0.25, 0.75]}, b={"b": [0.25, 0.75]})
    disjoint = gates(a={"a": [1.0, 0.0]}, b={"b": [0.0, 1.0]})
    assert gate_distances(equal) == {"a and b": pytest.approx(0.0)}
    assert gate_distances(disjoint) == {"a and b": pytest.approx(1.0)}


def test_experts_have_one_column_each_whatever_gate_weighs_them() -> None:
    states = {"a": ["own.a", "shared"], "b": ["own.b", "shared"]}
    gates = {t: {f"own.{t}": GateState(experts=e, load=[0.25, 0.75], entropy=0.5)} for t, e in states.items()}
    run = TrainResult.model_validate(train() | {"history": [Point(epoch=1, gates=gates).model_dump()]})
    section = gates_section(grouped([("run.json", run)]))
    assert section is not None
    figure = section.parts[0]
    assert isinstance(figure, Figure)
    assert figure.table.header == ("gate", "own.a", "shared", "own.b", "entropy")
    assert figure.traces[0]["z"] == [[0.25, 0.75, None], [None, 0.75, 0.25]]


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
