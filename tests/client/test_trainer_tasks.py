"""Rounds of clients with several tasks: mixed batches, loss weights, surgery, sampling by performance."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from client import trainer as trainer_module
from client.device import choose_device
from client.trainer import LocalResult, LocalTrainer, TaskData
from common.plan import SharingPlan
from common.training import Position, TrainSettings, round_steps
from tests.client.test_trainer import train
from tests.client.tiny_family import TinyFamily, shared_slice, tiny_data, tiny_split, values_of
from tests.common.families.tiny import text_family, texts

CPU = choose_device("cpu")
MIXED: dict[str, Any] = {"mixed_batches": True, "batch_size": 8, "learning_rate": 0.01}
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


def test_reports_of_mixed_steps_count_the_steps_that_held_the_task() -> None:
    family, data = TinyFamily(), tiny_data({"mood": 60, "score": 20, "topic": 2})
    settings = TrainSettings.model_validate(MIXED)
    result = train(family, shared_slice(family, *data), data, settings)
    assert {task: report.num_examples for task, report in result.reports.items()} == {
        "mood": 60,
        "score": 20,
        "topic": 2,
    }
    total = round_steps(settings, {task: len(of.train) for task, of in data.items()})
    assert total == 11
    assert result.reports["mood"].num_steps == total
    assert result.reports["topic"].num_steps == 2


@pytest.mark.parametrize("more", BALANCING)
def test_a_client_of_one_task_trains_as_if_nothing_were_balanced(more: dict[str, Any]) -> None:
    family, data = TinyFamily(dropout=0.2), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    plain = TrainSettings(batch_size=8, learning_rate=0.01)
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
    step: dict[str, Any] = {
        "optimizer": "sgd", "local_steps": 1, "warmup": 0, "max_grad_norm": None, "weight_decay": 0, "batch_size": 100,
    }  # fmt: skip
    plain = train(family, slice_, data, TrainSettings.model_validate(step))
    double = train(family, slice_, data, TrainSettings.model_validate(step | {"loss_weights": {"mood": 2.0}}))
    for slot, delta in plain.deltas.items():
        if "running" not in slot:
            torch.testing.assert_close(double.deltas[slot], 2 * delta, rtol=1e-4, atol=1e-8)
    assert double.reports["mood"].loss == plain.reports["mood"].loss


@pytest.mark.parametrize("more", BALANCING)
def test_a_round_done_again_gives_the_same_bits_and_later_rounds_go_on(more: dict[str, Any]) -> None:
    family, data = TinyFamily(dropout=0.2), tiny_data({"mood": 40, "score": 16})
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
    original = trainer_module.evaluate_task

    def counted(*args: Any) -> Any:  # noqa: ANN401
        evaluated.append(args[1].name)
        return original(*args)

    monkeypatch.setattr(trainer_module, "evaluate_task", counted)
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
    family, data = TinyFamily(), tiny_data({"mood": 50, "score": 50})
    slice_ = shared_slice(family, *data)
    monkeypatch.setattr(trainer_module, "weakness_of", lambda task, *_: {"mood": 0.1, "score": 0.3}[task.name])
    settings = TrainSettings.model_validate(MIXED | {"task_sampling": "performance"})
    reports = train(family, slice_, data, settings).reports
    assert {task: report.num_examples for task, report in reports.items()} == {"mood": 30, "score": 70}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("more", [{}, {"surgery": "upgrad", "loss_weighting": "gradnorm"}])
def test_a_real_encoder_learns_in_mixed_batches(more: dict[str, Any], separate: bool) -> None:
    family = text_family()
    data = {
        task: TaskData(split, split) for task in ("sst2", "qqp", "stsb") if (split := family.encode(task, texts(task)))
    }
    blueprint = family.blueprint()
    slice_ = (SharingPlan.separate(blueprint) if separate else SharingPlan.shared(blueprint)).slice(list(data))
    initial = family.initial_values(3)
    values = {slot.id: initial[slot.parameter] for slot in slice_.travelling}
    trainer = LocalTrainer(family, data, CPU)
    settings = TrainSettings.model_validate(
        MIXED | {"batch_size": 6, "local_steps": 30, "learning_rate": 3e-3, "warmup": 0, **more}
    )
    before = trainer.evaluate(slice_, values, settings)
    result = trainer.train(slice_, values, settings, Position(1, 1), 1, "c", lambda _: None, threading.Event())
    after = trainer.evaluate(slice_, {s: v + result.deltas.get(s, 0) for s, v in values.items()}, settings)
    assert all(after[task].loss < before[task].loss for task in data)
    assert result.deltas.keys() == {slot.id for slot in slice_.trainable}
