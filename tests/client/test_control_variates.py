"""SCAFFOLD's control variates on the client: what a round adds to its gradients, and what it learns from its way."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from client.device import choose_device
from client.memory import ClientMemory, resident
from client.trainer import LocalResult, LocalTrainer, TrainingDiverged
from common.control_variates import control_slots, is_control, with_controls
from common.errors import ConfigError
from common.plan import SharingPlan, Slice
from common.training import Position, TrainSettings
from tests.client.tiny_family import TinyFamily, tiny_data, values_of

CPU = choose_device("cpu")
SGD = TrainSettings(
    local_steps=3, batch_size=1000, learning_rate=0.1, optimizer="sgd", weight_decay=0, warmup=0, schedule="constant",
    max_grad_norm=None, head_learning_rate=2.0,
)  # fmt: skip
FAMILY = TinyFamily(["mood", "score"])
PLAN = SharingPlan.shared(FAMILY.blueprint())
CORRECTED = with_controls(PLAN)
BODY, HEAD = "hidden.weight@mood+score", "heads.mood.weight@mood"


def start(slice_: Slice, controls: float = 0.0) -> dict[str, Tensor]:
    """The values of a round, all common control variates alike."""
    values = values_of(FAMILY, Slice(slice_.tasks, tuple(s for s in slice_.slots if not is_control(s.spec))))
    return values | {s.id: torch.full(s.shape, controls) for s in slice_.slots if is_control(s.spec)}


def train(
    plan: SharingPlan,
    tasks: tuple[str, ...] = ("mood",),
    settings: TrainSettings = SGD,
    controls: float = 0.0,
    memory: ClientMemory | None = None,
    round_: int = 1,
) -> LocalResult:
    slice_ = plan.slice(tasks)
    trainer = LocalTrainer(FAMILY, tiny_data(dict.fromkeys(tasks, 40)), CPU, memory)
    values = start(slice_, controls)
    return trainer.train(slice_, values, settings, Position(round_, 10), 7, "c", lambda _: None, threading.Event())


def test_the_first_round_is_federated_averaging_to_the_bit() -> None:
    plain, corrected = train(PLAN).deltas, train(CORRECTED).deltas
    assert all(torch.equal(plain[slot], corrected[slot]) for slot in plain)


def test_the_change_is_the_mean_gradient_that_the_way_tells() -> None:
    memory = ClientMemory()
    deltas = train(CORRECTED, memory=memory).deltas
    torch.testing.assert_close(deltas["hidden.weight#control@mood+score"], -deltas[BODY] / 0.3)
    torch.testing.assert_close(deltas["heads.mood.weight#control@mood"], -deltas[HEAD] / 0.6)  # twice the rate
    companions = control_slots(CORRECTED.slice(["mood"]))
    trained = {slot_id for slot_id in deltas if slot_id in companions}
    assert {companions[slot_id].id for slot_id in trained} == {slot_id for slot_id in deltas if "#control" in slot_id}
    assert not any("running" in slot_id for slot_id in trained), "statistics have none"
    for slot_id in trained:
        control = companions[slot_id]
        kept = resident(memory.latest(), control, frozenset({"mood"}))
        assert kept is not None
        assert torch.equal(kept, deltas[control.id])


def test_the_difference_of_both_is_added_to_every_step() -> None:
    memory = ClientMemory()
    first = train(CORRECTED, memory=memory).deltas
    control = "hidden.weight#control@mood+score"
    one_step = SGD.model_copy(update={"local_steps": 1})
    plain = train(PLAN, settings=one_step, round_=2).deltas
    second = train(CORRECTED, settings=one_step, controls=0.5, memory=memory, round_=2).deltas
    torch.testing.assert_close(second[BODY], plain[BODY] - 0.1 * (0.5 - first[control]), rtol=1e-4, atol=1e-6)
    # Option II: c_k - c + (the corrected gradient) is the round's own gradient again.
    slot = CORRECTED.by_id[control]
    kept = resident(memory.latest(), slot, frozenset({"mood"}))
    assert kept is not None
    torch.testing.assert_close(kept, -plain[BODY] / 0.1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second[control], kept - first[control], rtol=1e-4, atol=1e-5)


def test_a_round_done_again_gives_the_same_bits() -> None:
    memory = ClientMemory()
    train(CORRECTED, memory=memory)
    second, again = (train(CORRECTED, controls=0.1, memory=memory, round_=2).deltas for _ in range(2))
    assert all(torch.equal(second[slot], again[slot]) for slot in second)


def test_a_step_counts_only_where_it_moved_something() -> None:
    settings = SGD.model_copy(update={"local_steps": 4, "batch_size": 40})
    deltas = train(CORRECTED, ("mood", "score"), settings).deltas
    torch.testing.assert_close(deltas["hidden.weight#control@mood+score"], -deltas[BODY] / 0.4)
    torch.testing.assert_close(deltas["heads.mood.weight#control@mood"], -deltas[HEAD] / 0.4)  # 2 steps, twice the rate


@pytest.mark.parametrize("frozen", [[BODY], ["hidden.weight#control@mood+score"]], ids=["slot", "companion"])
def test_what_is_frozen_keeps_its_control_variate(frozen: list[str]) -> None:
    memory = ClientMemory()
    deltas = train(CORRECTED.freeze(frozen), memory=memory).deltas
    assert not set(frozen) & deltas.keys()
    assert "hidden.weight#control@mood+score" not in deltas
    assert (BODY in deltas) == (BODY not in frozen)
    control = CORRECTED.by_id["hidden.weight#control@mood+score"]
    assert resident(memory.latest(), control, frozenset({"mood"})) is None


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"momentum": 0.9}])
def test_only_plain_sgd_will_do(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"SCAFFOLD needs .* sgd with momentum 0"):
        train(CORRECTED, settings=SGD.model_copy(update=change))


def test_a_control_variate_that_is_not_finite_keeps_nothing_of_the_round() -> None:
    memory = ClientMemory()
    with pytest.raises(TrainingDiverged, match="#control"):
        train(CORRECTED, settings=SGD.model_copy(update={"learning_rate": 1e-45}), controls=3e38, memory=memory)
    assert not memory.latest()
