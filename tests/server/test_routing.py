"""Experts weigh by the mass that gates gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.blueprint import Blueprint, ParameterSpec
from common.control_variates import with_controls
from common.messages import GateReport, TaskContribution
from common.plan import SharingPlan, Slot
from common.training import TrainSettings
from server.aggregation import AggregationConfig, AggregatorChoice
from server.correction import reweighing
from server.model_state import ModelState
from server.reduce import reduce_round
from server.routing import by_routing, expert_mass, routing_weights
from server.weights import TaskStep, TaskWeights, slot_weights
from tests.server.tiny_run import spooled

TASKS = frozenset("ab")
Done = dict[str, dict[str, TaskContribution]]


def spec(group: str, tasks: frozenset[str] = TASKS) -> ParameterSpec:
    return ParameterSpec(f"{group}.weight", (4,), "float32", tasks, tasks, group)


def expert(group: str = "expert.0") -> Slot:
    return Slot(spec(group), TASKS)


def contribution(examples: int, *mass: float, gate: str = "gate") -> TaskContribution:
    report = GateReport(experts=tuple(f"expert.{i}" for i in range(len(mass))), mass=mass, entropy=0.0)
    return TaskContribution(num_examples=examples, num_steps=1, loss=0.0, seconds=0.0, gates={gate: report})


@st.composite
def rounds(draw: st.DrawFn) -> Done:
    """Clients and what their gates did; some gave experts 0 and 1 nothing."""
    done: Done = {}
    for client_id in draw(st.sets(st.sampled_from("pqrs"), min_size=1)):
        done[client_id] = {}
        for task in draw(st.sets(st.sampled_from("ab"), min_size=1)):
            examples = draw(st.integers(1, 10**6))
            share = draw(st.just(0.0) | st.floats(1e-6, 1.0))
            done[client_id][task] = contribution(examples, examples * share, examples * (1 - share) / 2)
    return done


def by_examples(done: Done, rule: TaskWeights = "uniform", step: TaskStep = "mean") -> dict[str, float]:
    counts = {c: {task: one.num_examples for task, one in by_task.items()} for c, by_task in done.items()}
    return slot_weights(expert(), counts, rule, step)


rules = st.sampled_from(["uniform", "examples", "sqrt_examples", {"a": 0.2, "b": 5.0}])
steps = st.sampled_from(["mean", "sum"])


@given(rounds(), rules, steps)
@settings(max_examples=40)
def test_the_sum_stays_and_those_without_mass_have_no_weight(done: Done, rule: TaskWeights, step: TaskStep) -> None:
    before = by_examples(done, rule, step)
    weights = routing_weights(expert(), before, done, rule)
    used = [c for c, tasks in done.items() if any(one.gates["gate"].mass[0] for one in tasks.values())]
    assert list(weights) == sorted(used)
    if used:
        assert sum(weights.values()) == pytest.approx(sum(before.values()), rel=1e-12)
        assert min(weights.values()) > 0


@given(rounds(), rules, st.permutations("pqrs"))
@settings(max_examples=40)
def test_other_names_in_another_order_are_weighed_alike(done: Done, rule: TaskWeights, names: Sequence[str]) -> None:
    renamed = dict(zip("pqrs", names, strict=True))
    other = {renamed[c]: dict(reversed(tasks.items())) for c, tasks in reversed(done.items())}
    weights = routing_weights(expert(), by_examples(done, rule), done, rule)
    again = routing_weights(expert(), by_examples(other, rule), other, rule)
    assert again == pytest.approx({renamed[c]: weight for c, weight in weights.items()}, rel=1e-12)


@given(rounds(), rules, steps)
@settings(max_examples=40)
def test_gates_that_weigh_all_alike_give_the_weights_by_examples(done: Done, rule: TaskWeights, step: TaskStep) -> None:
    even = {
        client_id: {task: contribution(one.num_examples, *[one.num_examples / 8] * 8) for task, one in tasks.items()}
        for client_id, tasks in done.items()
    }
    before = by_examples(even, rule, step)
    assert routing_weights(expert("expert.5"), before, even, rule) == pytest.approx(before, rel=1e-12)


def test_the_formula_by_hand() -> None:
    """w is proportional to the sum over tasks of omega m / N, with omega 1 and 3, N_a = 40 and N_b = 20."""
    done = {
        "p": {"a": contribution(30, 6.0, 24.0), "b": contribution(5, 5.0, 0.0)},
        "q": {"a": contribution(10, 9.0, 1.0)},
        "r": {"b": contribution(15, 0.0, 15.0)},
    }
    rule = {"a": 1.0, "b": 3.0}
    raw = {"p": 6 / 40 + 3 * 5 / 20, "q": 9 / 40}
    weights = routing_weights(expert(), by_examples(done, rule), done, rule)
    assert weights == pytest.approx({c: share / sum(raw.values()) for c, share in raw.items()})


def test_an_expert_that_nobody_used_has_no_weights() -> None:
    done = {"p": {"a": contribution(3, 0.0, 3.0)}, "q": {"b": contribution(3, 0.0, 3.0)}}
    assert routing_weights(expert(), by_examples(done), done) == {}
    assert routing_weights(expert("expert.7"), by_examples(done), done) == {}, "no gate knows it"


def test_a_client_that_did_not_send_the_expert_counts_among_its_tasks_examples_alone() -> None:
    done = {
        "p": {"a": contribution(10, 10.0)},
        "q": {"a": contribution(30, 0.0, 30.0)},
        "r": {"b": contribution(10, 10.0)},
    }
    weights = routing_weights(expert(), {"p": 0.5, "r": 0.5}, done)
    assert weights == pytest.approx({"p": 0.25 / 1.25, "r": 1 / 1.25}), "p saw a quarter of its task, r all of its own"


def test_only_tasks_that_train_the_slot_count() -> None:
    done = {"p": {"a": contribution(10, 1.0), "b": contribution(10, 10.0)}, "q": {"a": contribution(10, 3.0)}}
    slot = Slot(ParameterSpec("w", (2,), "float32", TASKS, frozenset("a"), "expert.0"), TASKS)
    assert routing_weights(slot, {"p": 0.5, "q": 0.5}, done) == pytest.approx({"p": 0.25, "q": 0.75})


def test_a_shared_gate_of_ple_decides_on_shared_experts_and_not_on_a_tasks_own() -> None:
    own, shared = "expert.0.own.a.1", "expert.0.shared.1"
    gates = {
        "0.own.a": GateReport(experts=(own, shared), mass=(2.0, 3.0), entropy=0.0),
        "0.shared": GateReport(experts=(own, shared), mass=(4.0, 1.0), entropy=0.0),
    }
    assert expert_mass(own, "a", gates) == 2.0
    assert expert_mass(own, "b", gates) == 0.0, "examples of another task that pass the gate"
    assert expert_mass(shared, "a", gates) == expert_mass(shared, "b", gates) == 4.0


def test_a_model_per_task_moves_its_copy_of_the_experts_named_after_other_tasks() -> None:
    """As nobody else could; all of its gates count there."""
    group = "expert.0.own.a.0"
    report = GateReport(experts=(group, "expert.0.shared.0"), mass=(4.0, 6.0), entropy=0.0)
    done = {
        client_id: {
            "b": TaskContribution(num_examples=10, num_steps=1, loss=0.0, seconds=0.0, gates={"0.shared": report})
        }
        for client_id in "pq"
    }
    weights = routing_weights(Slot(spec(group), frozenset("b")), {"p": 0.5, "q": 0.5}, done)
    assert weights == {"p": 0.5, "q": 0.5}


PLAN = SharingPlan.shared(
    Blueprint("tiny", ("a", "b"), (spec("expert.0"), spec("expert.1"), spec("expert.2"), spec("body")))
)
DONE: Mapping[str, Mapping[str, TaskContribution]] = {
    "p": {"a": contribution(10, 8.0, 2.0, 0.0)},
    "q": {"b": contribution(10, 2.0, 8.0, 0.0)},
}


def test_a_round_is_folded_by_routing_and_an_unused_expert_stays_bit_for_bit(tmp_path: Path) -> None:
    model = ModelState(PLAN, {slot.id: torch.full((4,), 0.3) for slot in PLAN.slots}, 0)
    before = dict(model.values)
    deltas = {"p": torch.full((4,), 1.0), "q": torch.full((4,), -1.0)}
    updates = [spooled(tmp_path, c, 1, {slot.id: deltas[c] for slot in PLAN.slots}, {t: 10}) for c, t in ("pa", "qb")]
    discounts = {"q": 0.5}
    reduce_round(
        model,
        updates,
        {"p": {"a": 10}, "q": {"b": 10}},
        "uniform",
        AggregatorChoice.of(AggregationConfig()),
        discounts=discounts,
        reweigh=by_routing(DONE, "uniform"),
    )
    moved = {slot.parameter: (model.values[slot.id] - 0.3).numpy() for slot in PLAN.slots}
    wanted = {"expert.0": 0.8 - 0.5 * 0.2, "expert.1": 0.2 - 0.5 * 0.8, "body": 0.5 - 0.5 * 0.5}
    for group, change in wanted.items():
        np.testing.assert_allclose(moved[f"{group}.weight"], change, atol=1e-6)
    assert model.values["expert.2.weight@a+b"] is before["expert.2.weight@a+b"]


def test_corrections_start_from_the_weights_by_routing() -> None:
    plain = dict.fromkeys("pq", TrainSettings(optimizer="sgd"))
    done = {"p": DONE["p"], "q": {"b": DONE["q"]["b"].model_copy(update={"num_steps": 3})}}
    present = {c: frozenset(tasks) for c, tasks in {"p": "a", "q": "b", "r": "a"}.items()}
    plan = with_controls(PLAN)
    first, unused = plan.by_id["expert.0.weight@a+b"], plan.by_id["expert.2.weight@a+b"]
    even, experts = {"p": 0.5, "q": 0.5}, by_routing(done, "uniform")
    fednova = reweighing("fednova", plain, done, present, experts)
    tau = 0.8 * 1 + 0.2 * 3
    assert fednova(first, even) == pytest.approx({"p": 0.8 * tau, "q": 0.2 * tau / 3})
    scaffold = reweighing("scaffold", plain, done, present, experts)
    control = plan.by_id["expert.0.weight#control@a+b"]
    assert scaffold(control, even) == pytest.approx({"p": 0.8 * 2 / 3, "q": 0.2 * 2 / 3})
    assert fednova(unused, even) == scaffold(unused, even) == {}
    assert reweighing("none", plain, done, present, experts)(plan.by_id["body.weight@a+b"], even) == even
