"""What is told of a round's gates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from common.messages import GateReport, TaskContribution
from server.gate_records import gate_record, in_words, jensen_shannon

TWO = ("expert.0", "expert.1")


def done(examples: int, **gates: GateReport) -> TaskContribution:
    return TaskContribution(num_examples=examples, num_steps=1, loss=0.0, seconds=0.0, gates=gates)


def report(*mass: float, experts: tuple[str, ...] = TWO, entropy: float = 0.5) -> GateReport:
    return GateReport(experts=experts, mass=mass, entropy=entropy)


def test_a_round_without_experts_has_no_record() -> None:
    assert gate_record({}) is None
    assert gate_record({"p": {"age": done(5)}}) is None


def test_clients_of_a_task_are_added_up_and_tasks_compared() -> None:
    record = gate_record(
        {
            "p": {"age": done(10, age=report(8.0, 2.0, entropy=0.2)), "job": done(20, job=report(0.0, 20.0))},
            "q": {"age": done(30, age=report(12.0, 18.0, experts=TWO[::-1], entropy=0.6))},
            "r": {"age": done(0, age=report(0.0, 0.0, entropy=9.0))},
        }
    )
    assert record is not None
    assert record["tasks"]["age"]["age"] == {
        "experts": list(TWO),
        "load": pytest.approx([26 / 40, 14 / 40]),
        "entropy": pytest.approx(0.5),
        "examples": 40,
    }
    assert record["tasks"]["job"]["job"]["load"] == [0.0, 1.0]
    [apart] = record["distances"]
    assert (apart["tasks"], apart["gates"]) == (["age", "job"], ["age", "job"])
    assert apart["distance"] == pytest.approx(jensenshannon([26 / 40, 14 / 40], [0, 1], base=2))
    assert record["experts"] == pytest.approx({"expert.0": 26 / 60, "expert.1": 34 / 60})
    assert in_words(record) == (
        "loads of 2 experts from 0.433 to 0.567, age gate entropy 0.500, job gate entropy 0.500, "
        f"furthest apart are the gates of age and job ({apart['distance']:.3f})"
    )


def test_gates_over_other_experts_are_not_compared_and_each_layer_has_its_own_load() -> None:
    """As of PLE: own gates look at different experts, the shared one at all of the layer; the next layer is apart."""
    own_a, own_b, shared, next_one = "expert.0.own.a.0", "expert.0.own.b.0", "expert.0.shared.0", "expert.1.shared.0"
    every = (own_a, own_b, shared)
    record = gate_record(
        {
            "p": {
                "a": done(
                    4,
                    **{
                        "0.own.a": report(1.0, 3.0, experts=(own_a, shared)),
                        "0.shared": report(1.0, 1.0, 2.0, experts=every),
                        "1.own.a": report(4.0, experts=(next_one,)),
                    },
                ),
                "b": done(
                    4,
                    **{
                        "0.own.b": report(4.0, 0.0, experts=(own_b, shared)),
                        "0.shared": report(1.0, 1.0, 2.0, experts=every),
                        "1.own.b": report(4.0, experts=(next_one,)),
                    },
                ),
            }
        }
    )
    assert record is not None
    assert [(found["gates"], found["distance"]) for found in record["distances"]] == [
        (["0.shared", "0.shared"], 0.0),
        (["1.own.a", "1.own.b"], 0.0),
    ]
    wanted = {own_a: 3 / 16, own_b: 6 / 16, shared: 7 / 16, next_one: 1.0}
    assert record["experts"] == pytest.approx(wanted)


def test_a_gate_that_gave_nothing_has_no_distance() -> None:
    record = gate_record({"p": {"a": done(5, a=report(0.0, 0.0)), "b": done(5, b=report(1.0, 4.0))}})
    assert record is not None
    assert record["tasks"]["a"]["a"]["load"] == [0.0, 0.0]
    assert record["distances"] == []


shares = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda given: sum(given) > 0.01)


@given(shares, shares)
@settings(max_examples=40)
def test_the_distance_is_scipys_and_symmetric(one: list[float], other: list[float]) -> None:
    left, right = (list(np.array(given) / sum(given)) for given in (one, other))
    assert jensen_shannon(left, right) == pytest.approx(float(jensenshannon(left, right, base=2)), abs=1e-7)
    assert jensen_shannon(left, right) == jensen_shannon(right, left)
    assert jensen_shannon(left, left) == 0.0
    assert 0.0 <= jensen_shannon(left, right) <= 1.0
