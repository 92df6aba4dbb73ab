"""Rounds of clients with several tasks: mixed batches, loss weights, surgery, sampling by performance."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from client.device import choose_device
from client.evaluate import evaluate_tasks
from client.trainer import LocalResult, LocalTrainer, TaskData
from common.families.base import Family
from common.plan import SharingPlan
from common.training import Position, TrainSettings, round_steps
from tests.client.test_trainer import train
from tests.client.tiny_family import TinyFamily, shared_slice, tiny_data, tiny_split, values_of
from tests.common.families.tiny import text_family, texts

CPU = choose_device("cpu")
#: Batches large enough for several rows of each task: the tiny family's batch norm takes no single row.
PLAIN: dict[str, Any] = {"batch_size": 16, "learning_rate": 0.01, "threads": 1}
MIXED: dict[str, Any] = PLAIN | {"mixed_batches": True}
BALANCING: list[dict[str, Any]] = [
    {"loss_weighting": "uncertainty"},
    {"loss_weighting": "dwa"},
    {"loss_weighting": "gradnorm"},
    {"surgery": "pcgrad"},
    {"surgery": "cagrad"},
    {"task_sampling": "performance"},
    {"task_sampling": "annealed"},
]


def same(one: LocalResult, other: LocalResult) -> bool:
    return one.deltas.keys() == other.deltas.keys() and all(
        torch.equal(delta, other.deltas[slot]) for slot, delta in one.deltas.items()
    )


def encoded(family: Family, *tasks: str) -> dict[str, TaskData]:
    return {task: TaskData(split, split) for task in tasks if (split := family.encode(task, texts(task)))}


def round_of_texts(
    family: Family, data: dict[str, TaskData], settings: TrainSettings
) -> tuple[LocalResult, float, float]:
    """One round from the first values; the tasks' losses before and after it, added up."""
    slice_ = SharingPlan.shared(family.blueprint()).slice(list(data))
    initial = family.initial_values(3)
    values = {slot.id: initial[slot.parameter] for slot in slice_.travelling}
    trainer = LocalTrainer(family, data, CPU)
    before = trainer.evaluate(slice_, values, settings)
    result = trainer.train(slice_, values, settings, Position(1, 1), 1, "c", lambda _: None, threading.Event())
    after = trainer.evaluate(slice_, {s: v + result.deltas.get(s, 0) for s, v in values.items()}, settings)
    assert result.deltas.keys() == {slot.id for slot in slice_.trainable}
    return result, sum(of.loss for of in before.values()), sum(of.loss for of in after.values())


def test_reports_of_mixed_steps_count_the_steps_that_held_the_task() -> None:
    family = text_family()
    data = encoded(family, "sst2", "stsb")
    data["qqp"] = TaskData(family.encode("qqp", texts("qqp", ("one row", "another"))))
    settings = TrainSettings.model_validate(MIXED | {"batch_size": 3})
    result, _, _ = round_of_texts(family, data, settings)
    assert {task: report.num_examples for task, report in result.reports.items()} == {"sst2": 5, "stsb": 5, "qqp": 2}
    total = round_steps(settings, {task: len(of.train) for task, of in data.items()})
    assert total == 4
    assert result.reports["qqp"].num_steps == 2
    assert total >= result.reports["sst2"].num_steps > 2


@pytest.mark.parametrize("more", BALANCING)
def test_a_client_of_one_task_trains_as_if_nothing_were_balanced(more: dict[str, Any]) -> None:
    family, data = TinyFamily(dropout=0.2), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    plain = TrainSettings.model_validate(PLAIN)
    trainers = LocalTrainer(family, data, CPU), LocalTrainer(family, data, CPU)
    for number in (1, 2, 3):
        expected = train(family, slice_, data, plain, trainer=trainers[0], round_=number)
        found = train(
            family, slice_, data, TrainSettings.model_validate(MIXED | more), trainer=trainers[1], round_=number
        )
        assert same(found, expected)
        assert found.reports["mood"].num_steps == expected.reports["mood"].num_steps


def test_a_fixed_weight_scales_the_loss_of_a_single_task_too() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    step: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.5, "local_steps": 1, "batch_size": 100}
    step |= {"warmup": 0, "max_grad_norm": None, "weight_decay": 0}
    plain = train(family, slice_, data, TrainSettings.model_validate(step))
    double = train(family, slice_, data, TrainSettings.model_validate(step | {"loss_weights": {"mood": 2.0}}))
    for slot, delta in plain.deltas.items():
        if "running" not in slot:
            torch.testing.assert_close(double.deltas[slot], 2 * delta, rtol=1e-4, atol=1e-6)
    assert double.reports["mood"].loss == plain.reports["mood"].loss


@pytest.mark.parametrize("more", BALANCING)
def test_a_round_done_again_gives_the_same_bits_and_later_rounds_go_on(more: dict[str, Any]) -> None:
    family, data = TinyFamily(dropout=0.2), tiny_data({"mood": 40, "score": 24})
    slice_ = shared_slice(family, "mood", "score")
    settings = TrainSettings.model_validate(MIXED | more)
    trainer = LocalTrainer(family, data, CPU)
    rounds = [train(family, slice_, data, settings, trainer=trainer, round_=number) for number in (1, 2, 3)]
    again = train(family, slice_, data, settings, trainer=trainer, round_=3)
    assert same(rounds[2], again)
    assert set(again.reports) == {"mood", "score"}
    fresh = train(family, slice_, data, settings, round_=3)
    remembers = more.get("loss_weighting") is not None
    assert same(fresh, again) is not remembers


@pytest.mark.parametrize("evaluated_before", [True, False])
def test_the_received_model_is_evaluated_once_where_sampling_follows_performance(
    evaluated_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = TinyFamily()
    data = tiny_data({"mood": 40, "score": 40}) | {"topic": TaskData(tiny_split("topic", 40))}
    slice_ = shared_slice(family, *data)
    settings = TrainSettings.model_validate(MIXED | {"task_sampling": "performance"})
    evaluated: list[str] = []

    def counted(*args: Any) -> Any:  # noqa: ANN401
        evaluated.extend(task.name for task in args[1])
        return evaluate_tasks(*args)

    monkeypatch.setattr("client.trainer.evaluate_tasks", counted)
    trainer = LocalTrainer(family, data, CPU)
    if evaluated_before:
        trainer.evaluate(slice_, values_of(family, slice_), settings)
    result = train(family, slice_, data, settings, trainer=trainer)  # equal values, in other tensors
    assert evaluated == ["mood", "score"]
    assert sum(report.num_examples for report in result.reports.values()) == 120
    moved = {slot: value + 0.5 for slot, value in values_of(family, slice_).items()}
    train(family, slice_, data, settings, trainer=trainer, values=moved, round_=2)
    assert len(evaluated) == 4
    assert same(result, train(family, slice_, data, settings))


def test_the_weakest_task_is_seen_most(monkeypatch: pytest.MonkeyPatch) -> None:
    family, data = TinyFamily(), tiny_data({"mood": 80, "score": 80})
    slice_ = shared_slice(family, *data)
    monkeypatch.setattr("client.trainer.weakness_of", lambda task, *_: {"mood": 0.1, "score": 0.3}[task.name])
    settings = TrainSettings.model_validate(MIXED | {"task_sampling": "performance"})
    reports = train(family, slice_, data, settings).reports
    assert {task: report.num_examples for task, report in reports.items()} == {"mood": 48, "score": 112}


@pytest.mark.parametrize("more", [{}, {"surgery": "upgrad", "loss_weighting": "gradnorm"}])
def test_a_real_encoder_learns_in_mixed_batches(more: dict[str, Any]) -> None:
    family = text_family(dropout=0.0, encoder_dropout=0.0)
    settings = MIXED | {"batch_size": 6, "local_steps": 20, "learning_rate": 1e-3, "warmup": 0, **more}
    _, before, after = round_of_texts(
        family, encoded(family, "sst2", "qqp", "stsb"), TrainSettings.model_validate(settings)
    )
    assert after < 0.9 * before
