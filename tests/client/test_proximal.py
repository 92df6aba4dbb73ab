"""FedProx: the pull back to the received value, exactly where it belongs."""

from __future__ import annotations

import threading

import pytest
import torch

from client.device import choose_device
from client.proximal import ProximalTerm
from client.slot_model import SlotModel
from client.trainer import LocalResult, LocalTrainer, TaskData
from common.plan import SharingPlan, Slice
from common.training import Position, TrainSettings
from tests.client.tiny_family import TinyFamily, shared_slice, tiny_data, tiny_split, values_of

CPU = choose_device("cpu")
PLAIN = TrainSettings(
    local_steps=2, batch_size=1000, learning_rate=0.1, optimizer="sgd", weight_decay=0, warmup=0, schedule="constant",
    max_grad_norm=None,
)  # fmt: skip


def train(family: TinyFamily, slice_: Slice, data: dict[str, TaskData], settings: TrainSettings) -> LocalResult:
    trainer = LocalTrainer(family, data, CPU)
    values = values_of(family, slice_)
    return trainer.train(slice_, values, settings, Position(1, 10), 7, "c", lambda _: None, threading.Event())


def test_the_gradient_is_mu_times_the_distance() -> None:
    family = TinyFamily(["mood", "score"])
    slice_ = shared_slice(family, "mood", "score")
    model = SlotModel(family, slice_, ["mood", "score"], CPU)
    model.load(values_of(family, slice_), training=True)
    term = ProximalTerm(model, values_of(family, slice_), 0.5, {})
    body, head = model.parameter("hidden.weight@mood+score"), model.parameter("heads.score.weight@score")
    with torch.no_grad():
        body.add_(2.0)
        head.add_(2.0)
    body.grad = torch.full_like(body, 0.25)
    optimizer = torch.optim.SGD([body, head], lr=0.1)
    term.apply(optimizer)
    torch.testing.assert_close(body.grad, torch.full_like(body, 0.25 + 0.5 * 2))
    assert head.grad is None, "another task's head is not in the step"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_none_is_federated_averaging_to_the_bit_and_some_is_not(optimizer: str) -> None:
    family, data = TinyFamily(), tiny_data({"mood": 40})
    slice_ = shared_slice(family, "mood")
    settings = PLAIN.model_copy(update={"optimizer": optimizer})
    plain, none, some = (
        train(family, slice_, data, settings.model_copy(update=change)).deltas
        for change in ({}, {"proximal": 0.0}, {"proximal": 1.0})
    )
    assert all(torch.equal(plain[slot], none[slot]) for slot in plain)
    body = "hidden.weight@mood+score+topic"
    assert not torch.equal(plain[body], some[body])
    first = {"local_steps": 1}
    one, pulled = (
        train(family, slice_, data, settings.model_copy(update={**first, "proximal": mu})).deltas for mu in (0.0, 1.0)
    )
    assert all(torch.equal(one[slot], pulled[slot]) for slot in one), "at the start there is no distance yet"


def test_rows_that_no_example_touched_stay_exactly_zero() -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, "mood")
    data = {"mood": TaskData(tiny_split("mood", 40, words=6))}
    settings = TrainSettings(batch_size=8, local_epochs=3, proximal=0.3)
    table = train(family, slice_, data, settings).deltas["embeddings.weight@mood+score+topic"]
    assert torch.equal(table[6:], torch.zeros(14, 4))
    assert (table[:6] != 0).any(dim=1).all()


def test_what_lives_on_the_client_is_not_pulled() -> None:
    family = TinyFamily()
    plan = SharingPlan.shared(family.blueprint())
    heads = [slot.id for slot in plan.slots if slot.spec.group == "head"]
    slice_ = plan.reside(heads, "client").slice(["mood"])
    model = SlotModel(family, slice_, ["mood"], CPU)
    model.load(values_of(family, slice_), training=True)
    term = ProximalTerm(model, values_of(family, slice_), 1.0, {})
    head = model.parameter("heads.mood.weight@mood")
    with torch.no_grad():
        head.add_(1.0)
    head.grad = torch.zeros_like(head)
    term.apply(torch.optim.SGD([head], lr=0.1))
    assert not head.grad.any()
