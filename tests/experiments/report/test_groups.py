"""Runs that differ in nothing but their seed."""

from __future__ import annotations

from typing import Any

from experiments.report.groups import Group, grouped
from experiments.report.results import TrainResult
from tests.experiments.report.samples import train


def groups(*documents: dict[str, Any]) -> tuple[Group, ...]:
    return grouped([(f"{i}.json", TrainResult.model_validate(document)) for i, document in enumerate(documents)])


def test_seeds_of_one_setting_are_one_group() -> None:
    [group] = groups(train(seed=1), train(seed=0, settings={"threads": 2}))
    assert (group.seeds, group.files, group.variant) == (2, ("1.json", "0.json"), "")


def test_runs_that_differ_in_a_setting_are_never_averaged() -> None:
    found = groups(*(train(settings={"learning_rate": rate}) for rate in (0.001, 0.002, 0.002)))
    assert [(group.variant, len(group.runs)) for group in found] == [
        ("learning rate 0.001", 1), ("learning rate 0.002", 2),
    ]  # fmt: skip


def test_runs_of_other_length_or_place_are_apart() -> None:
    found = groups(train(), train(epochs=6), train(federated=10, partition="iid"), train(federated=10, partition="x"))
    assert [group.label for group in found] == [
        "mmoe on census-kdd, central, 3 epochs", "mmoe on census-kdd, central, 6 epochs",
        "mmoe on census-kdd, 10 clients, iid, 3 epochs", "mmoe on census-kdd, 10 clients, x, 3 epochs",
    ]  # fmt: skip


def test_a_seed_that_was_run_twice_counts_once() -> None:
    [group] = groups(train(income=0.9), train(income=0.8), train(seed=1, income=0.7))
    assert group.scores("income") == {0: (0.9 + 0.8) / 2, 1: 0.7}
