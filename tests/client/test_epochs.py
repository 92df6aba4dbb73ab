"""What a trainer's caller may do after each epoch."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from client.epochs import AfterEpoch
from client.evaluate import evaluate_task
from client.slot_model import SlotModel
from client.trainer import LocalResult, LocalTrainer
from common.training import Position, TrainSettings, round_steps
from tests.client.tiny_family import TASKS, TinyFamily, shared_slice, tiny_data, values_of

BOTH = ("mood", "topic")


def train(after_epoch: AfterEpoch | None, **more: Any) -> tuple[LocalResult, int]:  # noqa: ANN401  # settings
    """A round of two tasks of 20 and 11 rows, and its steps."""
    family, data = TinyFamily(BOTH, dropout=0.3), tiny_data({"mood": 20, "topic": 11})
    slice_ = shared_slice(family, *BOTH)
    settings = TrainSettings.model_validate({"batch_size": 8, "local_epochs": 3, **more})
    trainer = LocalTrainer(family, data, torch.device("cpu"))
    result = trainer.train(
        *(slice_, values_of(family, slice_), settings, Position(1, 1), 7, "c", lambda _: None, threading.Event()),
        after_epoch=after_epoch,
    )
    return result, round_steps(settings, {"mood": 20, "topic": 11})


@pytest.mark.parametrize("mixed", [False, True])
def test_it_is_called_at_the_end_of_each_epoch_and_changes_nothing(mixed: bool) -> None:
    seen = []

    def look(epoch: int, model: SlotModel) -> None:
        assert not any(part.training for part in model.replicas[0].module.modules())
        result = evaluate_task(model, TASKS["mood"], tiny_data({"mood": 20})["mood"].train, TrainSettings())
        seen.append((epoch, result.loss))

    (found, _), (expected, _) = train(look, mixed_batches=mixed), train(None, mixed_batches=mixed)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert len({loss for _, loss in seen}) == 3
    assert all(torch.equal(found.deltas[slot], delta) for slot, delta in expected.deltas.items())


@pytest.mark.parametrize(("mixed", "steps"), [(False, 5), (True, 4)])
def test_it_may_end_the_round(mixed: bool, steps: int) -> None:
    ended, _ = train(lambda _epoch, _model: True, mixed_batches=mixed)
    assert sum(report.num_examples for report in ended.reports.values()) == (32 if mixed else 31)
    assert max(report.num_steps for report in ended.reports.values()) <= steps


def test_part_of_an_epoch_at_the_end_is_none() -> None:
    seen: list[int] = []
    train(lambda epoch, _: seen.append(epoch), local_epochs=1.8)
    assert seen == [1]
