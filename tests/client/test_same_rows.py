"""Tasks that are labels of the same rows."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.batches import Batch
from client.loss import task_loss
from client.objective import Objective
from client.same_rows import kept_once, with_same_rows
from client.slot_model import SlotModel
from client.trainer import LocalTrainer, TaskData
from common.data.examples import Column
from common.errors import DataError
from common.families.base import EncodedSplit
from common.families.encoded_pairs import EncodedPairs
from common.families.encoded_rows import EncodedRows
from common.families.encoded_text import EncodedText
from common.training import Position, TrainSettings
from tests.client.tiny_experts import ExpertFamily
from tests.client.tiny_family import TASKS, shared_slice, tiny_data, values_of
from tests.common.families.tiny import table, text_family, texts

BOTH = ("mood", "score")


def tabular(labels: int, count: int = 6) -> EncodedRows:
    """The same inputs in memory of their own, and labels that differ by task."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 4, (count, 2), dtype=np.int32)
    return EncodedRows(rng.random((count, 3), dtype=np.float32), codes, 4, torch.full((count,), labels))


def test_the_inputs_are_kept_once_and_the_labels_of_each_task() -> None:
    data = {task: TaskData(tabular(i), tabular(i, 4)) for i, task in enumerate(BOTH)}
    shared = with_same_rows(data)
    kept, own = (shared[task] for task in BOTH)
    for one, other in ((kept.train, own.train), (kept.validation, own.validation)):
        assert isinstance(one, EncodedRows)
        assert isinstance(other, EncodedRows)
        assert one.numeric is other.numeric
        assert one.codes is other.codes
    assert own.train.labels.tolist() == [1] * 6
    assert kept_once(kept.train, own.train)
    assert not kept_once(data["mood"].train, data["score"].train)


@pytest.mark.parametrize("field", ["numeric", "codes"])
def test_the_first_row_that_differs_is_named(field: str) -> None:
    changed = getattr(tabular(0), field).copy()
    changed[[3, 5], 1] += 1
    data = {"mood": TaskData(tabular(0)), "score": TaskData(replace(tabular(1), **{field: changed}))}
    with pytest.raises(DataError, match=r"'mood' and 'score' differ from training row 3"):
        with_same_rows(data)
    with pytest.raises(DataError, match=r"'mood' has 6 training rows and task 'score' 5"):
        with_same_rows({"mood": TaskData(tabular(0)), "score": TaskData(tabular(1, 5))})


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_texts_are_compared_row_by_row(pairs: str) -> None:
    family = text_family(pairs=pairs)

    def encoded(task: str, *rows: str) -> TaskData:
        columns: dict[str, Column] = {"one": list(rows), "two": ["fine"] * len(rows)}
        return TaskData(family.encode(task, table(task, columns, np.arange(len(rows)) % 2)))

    kept, same = encoded("qqp", "a good film", "dull", "really"), encoded("stsb", "a good film", "dull", "really")
    shared = with_same_rows({"qqp": kept, "stsb": same})["stsb"].train
    assert text_of(shared).ids is text_of(kept.train).ids
    assert kept_once(shared, kept.train)
    assert text_of(same.train).ids is not text_of(kept.train).ids
    for other in (("a good film", "dull", "dull"), ("a good film", "dull", "really really")):
        with pytest.raises(DataError, match="row 2"):
            with_same_rows({"qqp": kept, "stsb": encoded("stsb", *other)})


def text_of(split: EncodedSplit) -> EncodedText:
    if isinstance(split, EncodedPairs):
        return split.texts
    assert isinstance(split, EncodedText)
    return split


def gradients(data: dict[str, TaskData], rows: np.ndarray, **more: Any) -> dict[str, Tensor]:  # noqa: ANN401
    family = ExpertFamily()
    slice_ = shared_slice(family, *BOTH)
    model = SlotModel(family, slice_, BOTH, torch.device("cpu"))
    model.load(values_of(family, slice_), training=True)
    settings = TrainSettings.model_validate({"same_rows": True, "loss_weights": {"mood": 2.0}, **more})
    losses = Objective(model, family, data, settings).backward(Batch(dict.fromkeys(BOTH, rows), same_rows=True))
    assert {task: count for task, (_, count) in losses.items()} == dict.fromkeys(BOTH, len(rows))
    return model.take_gradients()


def same_inputs() -> dict[str, TaskData]:
    data = tiny_data({"mood": 20, "score": 20})
    return data | {"score": TaskData(replace(data["mood"].train, labels=data["score"].train.labels))}  # type: ignore[type-var]


@pytest.mark.parametrize("more", [{}, {"micro_batch_size": 3}])
def test_the_gradient_is_that_of_the_joint_loss(more: dict[str, Any]) -> None:
    data, rows = same_inputs(), np.array([3, 11, 0, 7, 19])
    family = ExpertFamily()
    slice_ = shared_slice(family, *BOTH)
    model = SlotModel(family, slice_, BOTH, torch.device("cpu"))
    model.load(values_of(family, slice_), training=True)
    model.train_only(*BOTH)
    passes = {task: model.training_pass({task: slice(None)}, data[task].train.collate(rows)) for task in BOTH}
    loss = torch.zeros(())
    for task, done in passes.items():
        assert done.penalty is not None
        weight = 2.0 if task == "mood" else 1.0
        loss = loss + weight * task_loss(TASKS[task], done.outputs[task], data[task].train.labels[rows])
        loss = loss + done.penalty / 2  # a mean over the rows of both tasks
    loss.backward()  # type: ignore[no-untyped-call]
    expected, found = model.take_gradients(), gradients(data, rows, **more)
    assert found.keys() == expected.keys()
    for slot_id, gradient in expected.items():
        torch.testing.assert_close(found[slot_id], gradient, rtol=1e-4, atol=1e-6, msg=slot_id)


def test_a_round_takes_a_step_of_all_tasks_for_each_batch_of_rows() -> None:
    family = text_family()
    rows = ["a good film", "dull", "the plot is thin", "fine", "a bad film"]
    data = {task: TaskData(family.encode(task, texts(task, rows))) for task in ("qqp", "stsb")}
    slice_ = shared_slice(family, "qqp", "stsb")  # type: ignore[arg-type]
    settings = TrainSettings(same_rows=True, batch_size=2, local_epochs=2)
    trainer = LocalTrainer(family, data, torch.device("cpu"))
    arguments = (settings, Position(1, 1), 7, "c", lambda _: None, threading.Event())
    values = values_of(family, slice_)  # type: ignore[arg-type]
    result = trainer.train(slice_, values, *arguments)
    assert {(report.num_examples, report.num_steps) for report in result.reports.values()} == {(10, 6)}
