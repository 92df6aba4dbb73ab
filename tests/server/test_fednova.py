"""FedNova's effective steps and the factors that follow from them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import TaskContribution
from common.training import TrainSettings
from server.fednova import effective_steps, step_factors, steps_in_slot
from tests.server.tiny_run import PLAN

SGD = TrainSettings(optimizer="sgd", learning_rate=0.1)
BODY, HEAD = PLAN.by_id["body@mood+topic"], PLAN.by_id["head.mood@mood"]


def simulated(steps: int, momentum: float, pull: float) -> float:
    """The sum of the coefficients of the gradients in the way that a round goes, each followed on its own."""
    total = 0.0
    for start in range(steps):
        where = velocity = 0.0
        for step in range(steps):
            velocity = momentum * velocity + (step == start) - pull * where
            where += velocity
        total += where
    return total


@given(steps=st.integers(1, 30), momentum=st.sampled_from([0.0, 0.5, 0.9]), mu=st.sampled_from([0.0, 0.1, 2.0]))
def test_they_are_the_sum_of_the_gradients_coefficients(steps: int, momentum: float, mu: float) -> None:
    settings = SGD.model_copy(update={"momentum": momentum, "proximal": mu})
    assert effective_steps(steps, settings) == pytest.approx(simulated(steps, momentum, 0.1 * mu))


def test_the_numbers_of_the_paper() -> None:
    """Plain: tau. Momentum 0.9, 2 steps: 1 + 1.9. Proximal with eta mu = 0.5, 2 steps: 1 + 0.5. AdamW: its steps."""
    assert effective_steps(7, SGD) == 7
    assert effective_steps(2, SGD.model_copy(update={"momentum": 0.9})) == pytest.approx(2.9)
    assert effective_steps(2, SGD.model_copy(update={"proximal": 5.0})) == pytest.approx(1.5)
    assert effective_steps(7, TrainSettings(optimizer="adamw", proximal=1.0)) == 7


def contribution(examples: int, steps: int) -> TaskContribution:
    return TaskContribution(num_examples=examples, num_steps=steps, loss=0.0, seconds=0.0)


def test_steps_count_in_the_slots_that_their_task_trains() -> None:
    done = {"mood": contribution(100, 5), "topic": contribution(100, 3)}
    assert steps_in_slot(BODY, done) == 8
    assert steps_in_slot(HEAD, done) == 5
    assert steps_in_slot(BODY, done, mixed=True) == 5


def test_steps_without_examples_are_not_believed() -> None:
    assert steps_in_slot(HEAD, {"mood": contribution(100, 2**53)}) == 100
    assert steps_in_slot(HEAD, {"mood": contribution(100, 0)}) == 1


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.01, 3), st.integers(1, 99)), min_size=1))
def test_what_is_weighed_is_the_move_per_step_and_the_mean_of_the_steps(given: dict[str, tuple[float, int]]) -> None:
    weights = {c: weight for c, (weight, _) in given.items()}
    steps = {c: float(taken) for c, (_, taken) in given.items()}
    factors = step_factors(weights, steps)
    assert factors.keys() == weights.keys()
    # Clients that move one unit per step: together as far as their mean number of steps.
    moved = math.fsum(weights[c] * factors[c] * steps[c] for c in weights)
    assert moved == pytest.approx(math.fsum(weights[c] * steps[c] for c in weights))
    per_step = [factors[c] * steps[c] for c in weights]
    assert max(per_step) == pytest.approx(min(per_step))


def test_equal_steps_change_nothing_at_all() -> None:
    assert step_factors({"a": 0.1, "b": 0.7, "c": 0.2}, dict.fromkeys("abc", 7.3)) == dict.fromkeys("abc", 1.0)
