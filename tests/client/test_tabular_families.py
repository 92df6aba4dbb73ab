"""Families over tabular rows in a client's hands: what one pass can train, what a round sends."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from client.slot_model import SlotModel
from client.trainer import LocalResult, LocalTrainer, TaskData
from common.families.base import Family
from common.plan import SharingPlan
from common.training import Position, TrainSettings
from tests.common.families.tabular import TASKS, tabular
from tests.common.families.tiny import table

SETTINGS = TrainSettings(local_epochs=2, batch_size=4, learning_rate=0.01)


def rows(family: Family, tasks: Sequence[str]) -> dict[str, TaskData]:
    """Ten random rows of each task."""
    rng = np.random.default_rng(1)
    data = {}
    for task in tasks:
        labels = rng.normal(size=10).astype(np.float32) if task == "c" else np.arange(10) % 2
        data[task] = TaskData(
            family.encode(task, table(task, {"one": rng.normal(size=10), "two": rng.normal(size=10)}, labels))
        )
    return data


def trained(family: Family, tasks: Sequence[str], plan: SharingPlan | None = None) -> LocalResult:
    """One round of a client of some tasks, from the family's first values."""
    plan = SharingPlan.shared(family.blueprint()) if plan is None else plan
    first = family.initial_values(1)
    values: Mapping[str, torch.Tensor] = {slot.id: first[slot.parameter] for slot in plan.slots}
    trainer = LocalTrainer(family, rows(family, tasks), torch.device("cpu"))
    return trainer.train(
        plan.slice(tasks), values, SETTINGS, Position(1, 1), 1, "client", lambda _: None, threading.Event()
    )


def bound(family: Family) -> SlotModel:
    tasks = list(TASKS)
    return SlotModel(family, SharingPlan.shared(family.blueprint()).slice(tasks), tasks, torch.device("cpu"))


def test_tasks_that_cannot_disturb_each_other_are_trained_in_one_pass() -> None:
    for name in ("cross_stitch", "progressive", "adversarial"):
        assert bound(tabular(name)).together(TASKS) == [tuple(TASKS)], name


def test_a_client_of_one_task_sends_the_statistics_of_its_own_shared_features() -> None:
    deltas = trained(tabular("adversarial"), ["b"]).deltas
    sent = {slot_id for slot_id in deltas if slot_id.startswith("statistics.")}
    assert sent == {f"statistics.b.{part}@a+b+c" for part in ("seen", "mean", "square")}
    assert 0 < deltas["statistics.b.seen@a+b+c"].item() < 1
    assert "discriminator.weight@a+b+c" in deltas


def test_columns_in_sequence_send_the_one_in_training_alone() -> None:
    family = tabular("progressive")
    plan = SharingPlan.shared(family.blueprint())
    second = plan.freeze(slot.id for slot in plan.slots if slot.spec.trained_by != {"b"})
    deltas = trained(family, ["a", "b", "c"], second).deltas
    assert set(deltas) == {slot.id for slot in plan.slots if slot.spec.trained_by == {"b"}}
    assert any(slot_id.startswith("laterals.b.a.") for slot_id in deltas)


def test_one_tasks_client_trains_every_stitched_column() -> None:
    family = tabular("cross_stitch")
    assert set(trained(family, ["b"]).deltas) == {
        slot.id for slot in SharingPlan.shared(family.blueprint()).slots if "b" in slot.trained_by
    }
