from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from client.device import choose_device
from client.evaluate import evaluate_task, evaluate_tasks
from client.failures import TrainingDiverged
from client.slot_model import SlotModel
from common.training import TrainSettings
from tests.client.tiny_family import TASKS, TinyFamily, TinySplit, shared_slice, tiny_split, values_of


@pytest.mark.parametrize("task", list(TASKS))
def test_a_result_is_that_of_one_pass_over_all_rows_in_order(task: str) -> None:
    family, split = TinyFamily(dropout=0.5), tiny_split(task, 37)
    slice_ = shared_slice(family, task)
    model = SlotModel(family, slice_, [task], choose_device("cpu"))
    model.load(values_of(family, slice_), training=False)
    result = evaluate_task(model, TASKS[task], split, TrainSettings(eval_batch_size=5))
    with torch.inference_mode():
        outputs = model.forward(task, split.collate(torch.arange(37).numpy()))
    loss_of = functional.mse_loss if task == "score" else functional.cross_entropy
    assert result.loss == pytest.approx(float(loss_of(outputs, split.labels)), rel=1e-5)
    assert result.examples == 37
    assert set(result.metrics) == set(TASKS[task].metrics)
    if task != "score":
        expected = float((outputs.argmax(1) == split.labels).double().mean())
        assert result.metrics["accuracy"] == pytest.approx(expected)


def test_rows_weigh_in_the_loss_and_not_in_the_metrics() -> None:
    family, split = TinyFamily(), tiny_split("mood", 20)
    slice_ = shared_slice(family, "mood")
    model = SlotModel(family, slice_, ["mood"], choose_device("cpu"))
    model.load(values_of(family, slice_), training=False)
    counts = torch.arange(20) % 3
    weighted = evaluate_task(model, TASKS["mood"], replace(split, weights=counts.float()), TrainSettings())
    rows = torch.arange(20).repeat_interleave(counts).tolist()
    repeated = TinySplit(tuple(split.rows[row] for row in rows), split.labels[rows])
    assert weighted.loss == pytest.approx(evaluate_task(model, TASKS["mood"], repeated, TrainSettings()).loss)
    assert weighted.metrics == evaluate_task(model, TASKS["mood"], split, TrainSettings()).metrics
    assert weighted.examples == 20


def test_inputs_that_are_kept_once_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, *TASKS)
    model = SlotModel(family, slice_, list(TASKS), choose_device("cpu"))
    model.load(values_of(family, slice_), training=False)
    splits = {task: tiny_split(task, 23) for task in TASKS}
    apart = evaluate_tasks(model, list(TASKS.values()), splits, TrainSettings(eval_batch_size=5))
    whole, passes = model.forward_parts, []

    def counted(parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        passes.append(parts)
        return whole(parts, batch)

    monkeypatch.setattr(model, "forward_parts", counted)
    monkeypatch.setattr("client.evaluate.kept_once", lambda one, other: one.rows == other.rows)
    together = evaluate_tasks(model, list(TASKS.values()), splits, TrainSettings(eval_batch_size=5))
    assert len(passes) == 5
    assert list(together) == list(TASKS)
    for task in TASKS:
        assert together[task].loss == pytest.approx(apart[task].loss, rel=1e-5)


def test_outputs_that_are_not_finite_are_an_error() -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, "mood")
    model = SlotModel(family, slice_, ["mood"], choose_device("cpu"))
    model.load(values_of(family, slice_) | {"heads.mood.bias@mood": torch.full((2,), torch.nan)}, training=False)
    with pytest.raises(TrainingDiverged, match="mood"):
        evaluate_task(model, TASKS["mood"], tiny_split("mood", 5), TrainSettings())


def test_a_loss_that_is_not_finite_is_an_error_though_all_outputs_are() -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, "score")
    model = SlotModel(family, slice_, ["score"], choose_device("cpu"))
    values = values_of(family, slice_)
    huge = {"heads.score.bias@score": torch.full_like(values["heads.score.bias@score"], 1e30)}
    model.load(values | huge, training=False)
    with pytest.raises(TrainingDiverged, match="loss or metrics of task 'score'"):
        evaluate_task(model, TASKS["score"], tiny_split("score", 5), TrainSettings())
