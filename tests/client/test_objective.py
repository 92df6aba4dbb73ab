"""A step's gradient against that of separate passes, one per task, on a real encoder without dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client import mixing
from client.batches import Batch
from client.loss import task_loss
from client.objective import Objective
from client.slot_model import SlotModel
from client.surgery import inner_products
from client.trainer import TaskData
from common.families.base import Family
from common.plan import SharingPlan
from common.training import TrainSettings
from tests.client.tiny_family import TinyFamily, shared_slice, tiny_data, values_of
from tests.common.families.tiny import WORDS, text_family, texts

CPU = torch.device("cpu")
#: Of the tiny family's values: those of this seed make the gradients of its tasks disagree.
CONFLICTING_SEED = 1
TASKS = ("sst2", "qqp", "stsb")
BATCH = Batch({"sst2": np.array([4, 0, 2]), "qqp": np.array([1, 3]), "stsb": np.array([0, 1, 2, 3])})


@pytest.fixture(scope="module")
def family() -> Family:
    return text_family(dropout=0.0, encoder_dropout=0.0)


def bound(family: Family, *, separate: bool = False) -> tuple[SlotModel, dict[str, TaskData]]:
    rows = [*WORDS, "and yet it moves , slowly , over the whole length of a rather long sentence"]
    data = {task: TaskData(family.encode(task, texts(task, rows))) for task in TASKS}
    blueprint = family.blueprint()
    plan = SharingPlan.separate(blueprint) if separate else SharingPlan.shared(blueprint)
    slice_ = plan.slice(TASKS)
    initial = family.initial_values(3)
    model = SlotModel(family, slice_, TASKS, CPU)
    model.load({slot.id: initial[slot.parameter] for slot in slice_.slots}, training=True)
    return model, data


def gradients(model: SlotModel) -> dict[str, Tensor]:
    return {slot_id: gradient.clone() for slot_id, gradient in model.take_gradients().items()}


def one_by_one(
    family: Family | TinyFamily, model: SlotModel, data: Mapping[str, TaskData], batch: Batch = BATCH
) -> dict[str, dict[str, Tensor]]:
    """Each task's gradient, from a pass of its own."""
    found = {}
    for task, rows in batch.rows.items():
        model.train_only(task)
        split = data[task].train
        loss = task_loss(family.tasks[task], model.forward(task, split.collate(rows)), split.labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        found[task] = gradients(model)
    return found


def weighted_sum(parts: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float]) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    for task, of_task in parts.items():
        for slot_id, gradient in of_task.items():
            whole[slot_id] = whole.get(slot_id, torch.zeros(())) + weights.get(task, 1.0) * gradient
    return whole


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for slot_id, gradient in expected.items():
        torch.testing.assert_close(found[slot_id], gradient, rtol=1e-4, atol=1e-6, msg=slot_id)


def count_passes(model: SlotModel) -> list[int]:
    """A list that grows by the examples of each pass through an encoder, which looks up their tokens once."""
    seen: list[int] = []
    for replica in model.replicas:
        words: Any = replica.module.encoder
        words.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("weights", [{}, {"sst2": 3.0, "stsb": 0.25}])
def test_a_mixed_batch_has_the_weighted_sum_of_one_task_gradients_in_one_pass(
    family: Family, weights: dict[str, float]
) -> None:
    model, data = bound(family)
    expected = weighted_sum(one_by_one(family, model, data), weights)
    seen = count_passes(model)
    settings = TrainSettings(mixed_batches=True, loss_weights=weights)
    losses = Objective(model, family, data, settings).backward(BATCH)
    assert seen == [9]
    assert_same(gradients(model), expected)
    assert {task: count for task, (_, count) in losses.items()} == {"sst2": 3, "qqp": 2, "stsb": 4}
    for task, (total, count) in losses.items():  # reported without the weight
        split, rows = data[task].train, BATCH.rows[task]
        model.train_only(task)
        plain = task_loss(family.tasks[task], model.forward(task, split.collate(rows)), split.labels[rows])
        assert float(total) / count == pytest.approx(float(plain.detach()), rel=1e-5)


def test_a_one_task_batch_is_scaled_by_its_weight(family: Family) -> None:
    model, data = bound(family)
    batch = Batch({"qqp": np.array([1, 3])})
    expected = weighted_sum(one_by_one(family, model, data, batch), {"qqp": 2.0})
    Objective(model, family, data, TrainSettings(loss_weights={"qqp": 2.0})).backward(batch)
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("more", [{"micro_batch_size": 2}, {"micro_batch_size": 4, "surgery": "pcgrad"}])
def test_pieces_give_the_gradient_of_the_whole(family: Family, more: dict[str, object]) -> None:
    model, data = bound(family)
    seen = count_passes(model)
    found = []
    for size in (None, more["micro_batch_size"]):
        settings = TrainSettings.model_validate({"mixed_batches": True, **more, "micro_batch_size": size})
        torch.manual_seed(0)  # for the order of PCGrad's projections
        seen.clear()
        Objective(model, family, data, settings).backward(BATCH)
        found.append(gradients(model))
    assert_same(*found)
    assert max(seen) <= int(str(more["micro_batch_size"]))


def test_passes_of_similar_length_give_the_gradient_of_the_whole(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = bound(family)
    expected = weighted_sum(one_by_one(family, model, data), {})
    monkeypatch.setattr(mixing, "LEAST_SAVING", 0)
    seen = count_passes(model)
    Objective(model, family, data, TrainSettings(mixed_batches=True)).backward(BATCH)
    assert len(seen) > 1
    assert_same(gradients(model), expected)
    seen.clear()
    Objective(model, family, data, TrainSettings(mixed_batches=True, length_buckets=False)).backward(BATCH)
    assert seen == [9]
    assert_same(gradients(model), expected)


def test_tasks_of_different_slots_run_through_their_own_replica(family: Family) -> None:
    model, data = bound(family, separate=True)
    expected = weighted_sum(one_by_one(family, model, data), {})
    seen = count_passes(model)
    for more in ({}, {"surgery": "pcgrad"}, {"loss_weighting": "gradnorm"}):
        settings = TrainSettings.model_validate({"mixed_batches": True, **more})
        seen.clear()
        Objective(model, family, data, settings).backward(BATCH)
        assert seen == [3, 2, 4]
        assert_same(gradients(model), expected)  # they share nothing, so there is nothing to balance


@pytest.mark.parametrize("method", ["pcgrad", "cagrad", "upgrad", "mgda", "aligned_mtl"])
def test_surgery_weighs_the_shared_gradients_and_leaves_the_heads_alone(family: Family, method: str) -> None:
    model, data = bound(family)
    parts = one_by_one(family, model, data)
    objective = Objective(model, family, data, TrainSettings.model_validate({"mixed_batches": True, "surgery": method}))
    torch.manual_seed(0)
    objective.backward(BATCH)
    found = gradients(model)
    for task in TASKS:
        for slot_id in (slot for slot in found if slot.startswith(f"heads.{task}")):
            torch.testing.assert_close(found[slot_id], parts[task][slot_id], rtol=1e-4, atol=1e-6)
    shared = [slot for slot in found if not slot.startswith("heads")]
    matrix = torch.stack([torch.cat([parts[task][slot].flatten() for slot in shared]) for task in TASKS]).double()
    direction = torch.cat([found[slot].flatten() for slot in shared]).double()
    solution = torch.linalg.lstsq(matrix.T, direction.unsqueeze(1)).solution
    torch.testing.assert_close(matrix.T @ solution, direction.unsqueeze(1), rtol=1e-4, atol=1e-6)
    agrees = bool((matrix @ matrix.T >= 0).all())
    if method == "pcgrad" and agrees:
        torch.testing.assert_close(direction, matrix.sum(dim=0), rtol=1e-4, atol=1e-6)
    if method in ("upgrad", "mgda"):
        assert float((matrix @ direction).min()) > -1e-6


def test_pcgrad_takes_a_conflict_out_as_by_hand() -> None:
    family, data = TinyFamily(["mood", "topic"]), tiny_data({"mood": 12, "topic": 12})
    slice_ = shared_slice(family, "mood", "topic")
    model = SlotModel(family, slice_, ("mood", "topic"), CPU)
    model.load(values_of(family, slice_, CONFLICTING_SEED), training=True)
    batch = Batch({task: np.arange(12) for task in ("mood", "topic")})
    mood, topic = one_by_one(family, model, data, batch).values()
    shared = mood.keys() & topic.keys()
    products = inner_products([mood, topic], shared)
    a, b, c = float(products[0, 0]), float(products[0, 1]), float(products[1, 1])
    assert b < 0
    Objective(model, family, data, TrainSettings(mixed_batches=True, surgery="pcgrad")).backward(batch)
    found = gradients(model)
    for slot in shared:
        g, h = mood[slot], topic[slot]
        torch.testing.assert_close(found[slot], (g - b / c * h) + (h - b / a * g), rtol=1e-4, atol=1e-6)


def test_a_slot_that_another_task_only_reads_gets_no_gradient_from_it() -> None:
    family = TinyFamily(["mood", "score"], trained_by={"hidden.weight": frozenset({"mood"})})
    data = tiny_data({"mood": 10, "score": 10})
    slice_ = shared_slice(family, "mood", "score")
    model = SlotModel(family, slice_, ("mood", "score"), CPU)
    batch = Batch({"mood": np.arange(10), "score": np.arange(10)})
    assert model.together(batch.rows) == [("mood",), ("score",)]
    found = []
    for only in (Batch({"mood": np.arange(10)}), batch):
        model.load(values_of(family, slice_), training=True)
        Objective(model, family, data, TrainSettings(mixed_batches=True)).backward(only)
        found.append(gradients(model))
    slot = slice_.slot_of("mood", "hidden.weight").id
    torch.testing.assert_close(found[0][slot], found[1][slot])
    assert "heads.score.weight@score" in found[1]


def test_gradnorm_uses_the_weights_it_had_before_the_step(family: Family) -> None:
    model, data = bound(family)
    parts = one_by_one(family, model, data)
    settings = TrainSettings(mixed_batches=True, loss_weighting="gradnorm", loss_weight_rate=0.1)
    objective = Objective(model, family, data, settings)
    objective.backward(BATCH)
    assert_same(gradients(model), weighted_sum(parts, {}))
    learnt = {task: objective.numbers({})[f"loss:gradnorm:{task}"] for task in TASKS}
    assert sum(learnt.values()) == pytest.approx(3)
    norms = {
        task: float(torch.cat([g.flatten() for s, g in of_task.items() if s.startswith("encoder.pooler")]).norm())
        for task, of_task in parts.items()
    }
    assert max(norms, key=norms.__getitem__) == min(learnt, key=learnt.__getitem__)
    objective.backward(BATCH)
    assert_same(gradients(model), weighted_sum(parts, learnt))


@pytest.mark.parametrize("more", [{}, {"micro_batch_size": 2}, {"surgery": "pcgrad"}])
def test_rows_weigh_in_a_step_as_they_would_if_repeated(more: dict[str, object]) -> None:
    family = TinyFamily(["mood", "score"])
    slice_ = shared_slice(family, "mood", "score")
    plain = tiny_data({"mood": 6, "score": 6})
    weights = torch.tensor([2.0, 1.0, 0.0, 1.0, 3.0, 1.0])
    data = plain | {"mood": TaskData(replace(plain["mood"].train, weights=weights))}  # type: ignore[type-var]
    settings = TrainSettings.model_validate({"mixed_batches": True, **more})

    def gradient(rows: list[int], of: Mapping[str, TaskData]) -> tuple[dict[str, Tensor], float]:
        model = SlotModel(family, slice_, ["mood", "score"], CPU)
        model.load(values_of(family, slice_), training=True)
        for module in model.replicas:
            module.module.norm.eval()  # type: ignore[union-attr]  # normalised by the batch, repeated rows would differ
        batch = Batch({"mood": np.array(rows), "score": np.array([3, 1])})
        total, count = Objective(model, family, of, settings).backward(batch)["mood"]
        return gradients(model), float(total) / count

    weighted, loss = gradient([4, 2, 0, 1], data)
    repeated, expected = gradient([4, 4, 4, 0, 0, 1], plain)
    assert_same(weighted, repeated)
    assert loss == pytest.approx(expected)
