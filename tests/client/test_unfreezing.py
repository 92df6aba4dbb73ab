"""Which slots are open from which step on."""

from __future__ import annotations

import threading

import pytest

from client.device import choose_device
from client.slot_model import SlotModel
from client.trainer import LocalTrainer
from client.unfreezing import openings
from common.errors import PlanError
from common.plan import SharingPlan
from common.training import Position, TrainSettings
from tests.client.tiny_family import TinyFamily, tiny_data, values_of

BUFFERS = {"norm.running_mean", "norm.running_var"}
HEAD = {"heads.mood.weight", "heads.mood.bias"}
LAYER = {"hidden.weight", "hidden.bias", "norm.weight", "norm.bias"}
TABLE = {"embeddings.weight"}


def opened(
    frozen: set[str], *stages: tuple[float, str], tasks: tuple[str, ...] = ("mood",), **changes: object
) -> dict[int, set[str]]:
    """Step to the names of parameters that are open, of a client with 40 rows per task and batches of 8."""
    family = TinyFamily(["mood", "score"])
    plan = SharingPlan.shared(family.blueprint())
    plan = plan.freeze([slot.id for slot in plan.slots if slot.parameter in frozen])
    model = SlotModel(family, plan.slice(tasks), tasks, choose_device("cpu"))
    settings = TrainSettings.model_validate(
        {
            "batch_size": 8,
            "local_epochs": 9,
            "unfreeze": [{"epoch": epoch, "open": what} for epoch, what in stages],
            **changes,
        }
    )
    found = openings(model, settings, dict.fromkeys(tasks, 40))
    return {step: {slot.partition("@")[0] for slot in slots} for step, slots in found.items()}


def test_without_a_schedule_everything_is_open() -> None:
    assert opened(set()) == {}


def test_what_is_open_stays_open_and_buffers_always_are() -> None:
    assert opened(set(), (0, "heads"), (0.3, "layers:0"), (2, "everything")) == {
        0: BUFFERS | HEAD,
        1: BUFFERS | HEAD | LAYER,
        10: BUFFERS | HEAD | LAYER | TABLE,
    }


def test_an_epoch_is_one_pass_over_all_tasks() -> None:
    steps = opened(set(), (0, "heads"), (1, "everything"), tasks=("mood", "score"))
    assert list(steps) == [0, 10]
    assert steps[0] >= HEAD | {"heads.score.weight"}


def test_an_epoch_within_the_round_is_reached_also_with_mixed_batches() -> None:
    """80 rows in batches of 79: two epochs are 160 rows, so three steps and not four."""
    both, mixed = ("mood", "score"), {"batch_size": 79, "local_epochs": 2, "mixed_batches": True}
    assert list(opened(set(), (0, "heads"), (1.9, "everything"), tasks=both, **mixed)) == [0, 2]


def test_a_selector_of_another_clients_head_means_nothing_here() -> None:
    assert opened(set(), (0, "heads"), (1, "head:score"))[5] == BUFFERS | HEAD


def test_where_the_plan_has_frozen_the_first_entry_the_next_counts_from_the_beginning() -> None:
    assert opened(HEAD, (0, "heads"), (1, "layers:0"), (2, "everything")) == {
        0: BUFFERS | HEAD | LAYER,
        10: BUFFERS | HEAD | LAYER | TABLE,
    }
    with pytest.raises(PlanError, match=r"no entry of training.unfreeze opens anything that \['mood'\] may train"):
        opened(HEAD, (0, "heads"))


def test_nothing_of_one_round_stays_closed_in_the_next() -> None:
    family, data = TinyFamily(["mood"]), tiny_data({"mood": 16})
    slice_ = SharingPlan.shared(family.blueprint()).slice(["mood"])
    trainer, values = LocalTrainer(family, data, choose_device("cpu")), values_of(family, slice_)
    closed = TrainSettings.model_validate({"batch_size": 8, "unfreeze": [{"epoch": 0, "open": "heads"}]})
    sent = []
    for number, settings in ((1, closed), (2, TrainSettings(batch_size=8))):
        position = Position(number, 2)
        result = trainer.train(slice_, values, settings, position, 1, "c", lambda _: None, threading.Event())
        sent.append({slot.partition("@")[0] for slot in result.deltas})
    assert sent == [BUFFERS | HEAD, BUFFERS | HEAD | LAYER | TABLE]
