from __future__ import annotations

import itertools
import logging
import threading

import pytest
import torch

from client import precision
from client.device import choose_device
from client.trainer import LocalTrainer, TaskData
from common.plan import SharingPlan
from common.training import Position, TrainSettings
from tests.common.families.tiny import text_family, texts


class Clock:
    """Each step in bf16 takes so many times one in fp32: readings are at the beginning and end of each, in turn."""

    def __init__(self, times: float) -> None:
        self._durations = itertools.cycle([1.0, times])
        self._now, self._inside = 0.0, False

    def perf_counter(self) -> float:
        if self._inside:
            self._now += next(self._durations)
        self._inside = not self._inside
        return self._now


@pytest.mark.parametrize(("times", "chosen"), [(0.5, "bf16"), (0.89, "bf16"), (0.91, "fp32"), (1.5, "fp32")])
def test_bf16_is_taken_where_it_is_clearly_faster_and_once_for_all_rounds(
    times: float, chosen: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "time", Clock(times))
    family = text_family()
    data = {"sst2": TaskData(family.encode("sst2", texts("sst2")), family.encode("sst2", texts("sst2")))}
    slice_ = SharingPlan.shared(family.blueprint()).slice(["sst2"])
    initial = family.initial_values(3)
    values = {slot.id: initial[slot.parameter] for slot in slice_.slots}

    def train(trainer: LocalTrainer, given: str) -> dict[str, torch.Tensor]:
        settings = TrainSettings.model_validate({"batch_size": 3, "precision": given, "threads": 1})
        result = trainer.train(slice_, values, settings, Position(1, 2), 1, "c", lambda _: None, threading.Event())
        return {slot: delta.to_dense() for slot, delta in result.deltas.items()}

    trainer = LocalTrainer(family, data, choose_device("cpu"))
    with caplog.at_level(logging.INFO):
        trainer.evaluate(slice_, values, TrainSettings(precision="auto", threads=1))
        found = train(trainer, "auto")
    assert f"{chosen} is used from here on" in caplog.text
    assert caplog.text.count("precision auto") == 1
    wanted, other = (train(LocalTrainer(family, data, choose_device("cpu")), p) for p in ("fp32", "bf16"))
    if chosen == "bf16":
        wanted, other = other, wanted
    assert all(torch.equal(found[slot], wanted[slot]) for slot in wanted)
    assert not all(torch.equal(found[slot], other[slot]) for slot in other)
