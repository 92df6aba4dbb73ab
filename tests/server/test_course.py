"""Where a run goes: plans in order, judgements that come in time, and when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.metrics import Evaluation
from common.plan import SharingPlan
from server.course import Course
from server.freezing_config import FreezingConfig
from server.history import History
from server.outlook import Outlook
from server.selection import Selection
from server.selection_config import EarlyStoppingConfig
from server.unfreezing import resolve_schedule
from tests.common.plan_strategies import glue_blueprint

PLAN = SharingPlan.shared(glue_blueprint("sst2 qqp"))
BOTH = frozenset({"sst2", "qqp"})


def course(*, freezing: Any = None, **stopping: Any) -> Course:  # noqa: ANN401  # YAML values
    schedule = resolve_schedule(FreezingConfig.model_validate(freezing or {}), PLAN, "my.yaml")
    metrics = dict.fromkeys(("sst2", "qqp"), "accuracy")
    rule = EarlyStoppingConfig(**stopping) if stopping else None
    return Course(schedule, Selection(metrics, watched=metrics, stopping=rule))


def results(**accuracies: float) -> dict[str, Evaluation]:
    return {task: Evaluation({"accuracy": value}, 1.0, 9) for task, value in accuracies.items()}


def frozen_heads(plan: SharingPlan) -> set[str]:
    return {min(slot.tasks) for slot in plan.slots if slot.spec.group == "head" and slot.frozen}


def test_a_version_is_stored_with_the_plan_of_the_round_that_starts_from_it() -> None:
    run = course(freezing={"schedule": [{"from_round": 1, "open": "heads"}, {"from_round": 3, "open": "everything"}]})
    plan = run.plan_to_start_with(PLAN)
    run.made(0, plan)
    for version in range(3):
        plan = run.plan_of_next(version, plan)
        run.made(version + 1, plan)
    assert [run.plan_of_round(number) == PLAN for number in (1, 2, 3, 4)] == [False, False, True, True]
    assert run.plan_of_round(5) is None


def test_a_judgement_counts_from_the_plan_after_the_next() -> None:
    run = course(patience=1)
    plan = run.plan_to_start_with(PLAN)
    for version, value in enumerate((0.5, 0.4)):
        row, told = run.judge(version, results(sst2=value, qqp=0.1 * version))
        assert row["sst2"] == {"accuracy": value, "loss": 1.0}
        assert bool(told) == (version == 1)
        # As in a round: the version from which it starts has just been judged.
        after = run.plan_of_next(version, plan)
        assert frozen_heads(after) == ({"sst2"} if version == 1 else set())
        assert run.stopped(version) == {}, "when this version was made nobody knew"
        plan = after
    assert run.stopped(2) == {"sst2": 1}


def test_what_is_judged_later_changes_no_earlier_decision() -> None:
    run = course(patience=1)
    for version, value in enumerate((0.5, 0.4, 0.3)):
        run.judge(version, results(sst2=value))
    assert frozen_heads(run.plan_of_next(0, PLAN)) == set()
    assert run.outlook(1, PLAN) == Outlook(BOTH)


@pytest.mark.parametrize(
    ("when", "stop", "outlook"),
    [
        ("freeze_head", "all", Outlook(BOTH)),
        ("leave", "all", Outlook(frozenset({"qqp"}))),
        ("leave", "any", Outlook(frozenset({"qqp"}), "a task has stopped improving: sst2 at version 1")),
    ],
)
def test_what_can_be_done_when_a_task_has_stopped(when: str, stop: str, outlook: Outlook) -> None:
    run = course(patience=1, when_stopped=when, stop_run=stop)
    for version in range(2):
        run.judge(version, results(sst2=0.5, qqp=0.1 * version))
    assert run.outlook(2, run.plan_of_next(1, PLAN)) == outlook


def test_with_nothing_to_train_the_run_is_at_its_end() -> None:
    run = course(freezing={"freeze": "everything"})
    plan = run.plan_to_start_with(PLAN)
    assert run.outlook(0, plan) == Outlook(frozenset(), "nothing is left to train in round 1: everything is frozen")


def test_it_goes_on_from_its_history(tmp_path: Path) -> None:
    history = History(tmp_path / "run.db")
    frozen = PLAN.freeze(["heads.sst2.weight@sst2"])
    for version, plan in enumerate((PLAN, frozen, PLAN)):
        history.record_commit(version, "sha", plan.to_dict(), plan.digest, 0.0)
    for version, value in enumerate((0.4, 0.6, 0.5)):
        history.record_judgement(version, {"sst2": {"accuracy": value, "loss": 1.0}})
    run = Course.restored(resolve_schedule(FreezingConfig(), PLAN, ""), Selection({"sst2": "accuracy"}), history)
    history.close()
    assert [run.plan_of_round(number) for number in (1, 2, 3, 4)] == [PLAN, frozen, PLAN, None]
    assert run.best_versions == {1}
