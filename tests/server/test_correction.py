"""Which weights a method changes, and which it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.control_variates import with_controls
from common.messages import TaskContribution
from common.plan import Slot
from common.training import TrainSettings
from server.correction import reweighing
from tests.server.tiny_run import PLAN

PLAIN = TrainSettings(optimizer="sgd")
DONE = {
    client_id: {"mood": TaskContribution(num_examples=90, num_steps=steps, loss=0.0, seconds=0.0)}
    for client_id, steps in {"a": 1, "b": 3}.items()
}
WEIGHTS = {"a": 0.5, "b": 0.5}
BODY = PLAN.by_id["body@mood+topic"]
CONTROL = with_controls(PLAN).by_id["body#control@mood+topic"]
STATISTICS = Slot(replace(BODY.spec, kind="buffer"), BODY.tasks)
PRESENT = dict.fromkeys("abcd", frozenset({"mood"}))


def test_none_changes_nothing() -> None:
    reweigh = reweighing("none", dict.fromkeys("ab", PLAIN), DONE, PRESENT)
    assert reweigh(BODY, WEIGHTS) == WEIGHTS


def test_scaffold_changes_those_of_control_variates() -> None:
    reweigh = reweighing("scaffold", dict.fromkeys("ab", PLAIN), DONE, PRESENT)
    assert reweigh(BODY, WEIGHTS) == WEIGHTS
    assert reweigh(CONTROL, WEIGHTS) == {"a": 0.25, "b": 0.25}


def test_fednova_changes_those_of_parameters() -> None:
    reweigh = reweighing("fednova", dict.fromkeys("ab", PLAIN), DONE, PRESENT)
    assert reweigh(BODY, WEIGHTS) == {"a": 0.5 * 2, "b": 0.5 * 2 / 3}
    assert reweigh(STATISTICS, WEIGHTS) == WEIGHTS, "running means are no sums of steps"


@pytest.mark.parametrize("key", ["mixed_batches", "same_rows"])
def test_fednova_counts_a_step_that_holds_several_tasks_once(key: str) -> None:
    """Client a reports its 3 steps for each of its two tasks, client b mixes too but has one task only."""
    three = TaskContribution(num_examples=90, num_steps=3, loss=0.0, seconds=0.0)
    done = {"a": {"mood": three, "topic": three}, "b": {"mood": three}}
    together = PLAIN.model_copy(update={key: True})
    assert reweighing("fednova", dict.fromkeys("ab", together), done, PRESENT)(BODY, WEIGHTS) == WEIGHTS
    in_turn = reweighing("fednova", {"a": PLAIN, "b": together}, done, PRESENT)(BODY, WEIGHTS)
    assert in_turn == {"a": 0.5 * 4.5 / 6, "b": 0.5 * 4.5 / 3}
