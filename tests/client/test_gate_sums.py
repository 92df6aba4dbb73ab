"""What gates did in a round, and what follows from it for the update."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.batches import Batch
from client.gate_sums import GateSums
from client.loss import task_loss
from client.objective import Objective
from client.slot_model import SlotModel
from client.trainer import LocalResult, LocalTrainer
from common.families.base import GateUse
from common.training import Position, TrainSettings
from tests.client.tiny_experts import EXPERTS, ExpertFamily
from tests.client.tiny_family import TASKS, shared_slice, tiny_data, values_of

BOTH = ("mood", "score")
SIZES = {"mood": 20, "score": 11}
CPU = torch.device("cpu")


def train(family: ExpertFamily, **more: Any) -> LocalResult:  # noqa: ANN401  # settings
    slice_ = shared_slice(family, *BOTH)
    settings = TrainSettings.model_validate({"batch_size": 8, **more})
    return LocalTrainer(family, tiny_data(SIZES), CPU).train(
        *(slice_, values_of(family, slice_), settings, Position(1, 1), 7, "c", lambda _: None, threading.Event())
    )


@pytest.mark.parametrize(
    "more", [{"mixed_batches": False}, {}, {"micro_batch_size": 3}, {"surgery": "pcgrad"}, {"length_buckets": False}]
)
def test_the_mass_of_a_gate_is_that_of_all_examples(more: dict[str, Any]) -> None:
    result = train(ExpertFamily(), **{"local_epochs": 2, "mixed_batches": True, **more})
    for task, report in result.reports.items():
        assert report.num_examples == 2 * SIZES[task]
        gate = report.gates["gate"]
        assert gate.experts == tuple(f"expert.{index}" for index in range(EXPERTS))
        assert sum(gate.mass) == pytest.approx(report.num_examples, rel=1e-5)
        assert min(gate.mass) > 0
        assert 0 < gate.entropy < np.log(EXPERTS)


def test_an_expert_without_any_mass_stays_out_of_the_update() -> None:
    family = ExpertFamily(closed=[1])
    result = train(family, weight_decay=0.5)  # which would move it
    assert all(report.gates["gate"].mass[1] == 0.0 for report in result.reports.values())
    experts = {slot for slot in result.deltas if slot.startswith("experts.")}
    assert {slot.split("@")[0] for slot in experts} == {"experts.0", "experts.2"}
    assert {slot.split("@")[0] for slot in train(ExpertFamily()).deltas if slot.startswith("experts.")} == {
        f"experts.{index}" for index in range(EXPERTS)
    }


def gradients(more: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
    family = ExpertFamily()
    slice_ = shared_slice(family, *BOTH)
    model = SlotModel(family, slice_, BOTH, CPU)
    model.load(values_of(family, slice_), training=True)
    settings = TrainSettings.model_validate({"mixed_batches": True, **more})
    Objective(model, family, tiny_data(SIZES), settings).backward(batch)
    return model.take_gradients()


def by_hand(batch: Batch, weights: dict[str, float]) -> dict[str, Tensor]:
    """Weighted mean losses and each task's penalty: rows of this kind can't stand in one batch."""
    family, data = ExpertFamily(), tiny_data(SIZES)
    slice_ = shared_slice(family, *BOTH)
    model = SlotModel(family, slice_, BOTH, CPU)
    model.load(values_of(family, slice_), training=True)
    model.train_only(*BOTH)
    total = torch.zeros(())
    for task, rows in batch.rows.items():
        split = data[task].train
        done = model.training_pass({task: slice(None)}, split.collate(rows))
        assert done.penalty is not None
        loss = task_loss(TASKS[task], done.outputs[task], split.labels[rows])
        total = total + weights.get(task, 1.0) * loss + done.penalty
    total.backward()  # type: ignore[no-untyped-call]
    return model.take_gradients()


@pytest.mark.parametrize("more", [{}, {"micro_batch_size": 2}, {"micro_batch_size": 5, "loss_weights": {"mood": 3.0}}])
def test_the_penalty_is_a_mean_over_the_rows_of_a_pass_in_however_many_pieces(more: dict[str, Any]) -> None:
    batch = Batch({"mood": np.array([4, 0, 2, 19, 7]), "score": np.array([1, 3])})
    expected = by_hand(batch, more.get("loss_weights", {}))
    found = gradients(more, batch)
    assert found.keys() == expected.keys()
    for slot_id, gradient in expected.items():
        torch.testing.assert_close(found[slot_id], gradient, rtol=1e-4, atol=1e-6, msg=slot_id)


def test_task_by_task_each_has_the_penalty_of_its_own_pass() -> None:
    """A task's own parameters keep their gradient under surgery."""
    batch = Batch({"mood": np.arange(6), "score": np.arange(4)})
    expected = by_hand(batch, {})
    found = gradients({"surgery": "mgda"}, batch)
    own = [slot_id for slot_id in expected if slot_id.startswith("gate.")]
    assert own
    for slot_id in own:
        torch.testing.assert_close(found[slot_id], expected[slot_id], rtol=1e-4, atol=1e-6, msg=slot_id)


def test_sums_of_a_huge_round_keep_what_each_pass_adds() -> None:
    """In float32 an expert of 2^24 examples would grow no more."""
    sums = GateSums(lambda _: {"gate": ("expert.0",)})
    for mass in (2.0**24, *[0.75] * 8):
        sums.add({"mood": {"gate": GateUse(torch.tensor([mass]), torch.tensor(mass))}})
    report = sums.reports({"mood": 1})["mood"]["gate"]
    assert report.mass == (2.0**24 + 6,)
    assert report.entropy == 2.0**24 + 6
