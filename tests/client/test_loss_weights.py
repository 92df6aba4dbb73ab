from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from client.gradnorm import GradNormWeights
from client.loss_weights import (
    LOG_BOUND,
    DynamicAverageWeights,
    FixedWeights,
    UncertaintyWeights,
    build_loss_weights,
)
from client.tally import TaskReport
from common.training import TrainSettings
from tests.client.tiny_family import TASKS

CPU = torch.device("cpu")
BOTH = {task: TASKS[task] for task in ("mood", "score")}


def losses(**values: float) -> dict[str, Tensor]:
    return {task: torch.tensor(value) for task, value in values.items()}


def report(loss: float) -> TaskReport:
    return TaskReport(1, 1, loss, 0.0)


@pytest.mark.parametrize(
    ("weighting", "method"),
    [
        ("fixed", FixedWeights),
        ("uncertainty", UncertaintyWeights),
        ("dwa", DynamicAverageWeights),
        ("gradnorm", GradNormWeights),
    ],
)
def test_the_settings_name_the_method_and_a_single_task_needs_none(weighting: str, method: type) -> None:
    settings = TrainSettings.model_validate({"loss_weighting": weighting, "mixed_batches": True})
    assert type(build_loss_weights(settings, BOTH, {}, CPU)) is method
    alone = build_loss_weights(settings, {"mood": TASKS["mood"]}, {}, CPU)
    assert alone.of("mood") == 1
    assert alone.numbers({"mood": report(1.0)}) == {}


def test_fixed_weights_are_one_where_none_is_named() -> None:
    settings = TrainSettings(loss_weights={"mood": 2.5})
    weights = build_loss_weights(settings, BOTH, {}, CPU)
    assert (weights.of("mood"), weights.of("score")) == (2.5, 1.0)


def test_uncertainty_starts_at_one_for_classes_and_a_half_for_scores_and_finds_its_balance() -> None:
    weights = UncertaintyWeights(BOTH, 0.05, {}, CPU)
    assert (float(weights.of("mood")), float(weights.of("score"))) == (1.0, 0.5)
    for _ in range(2000):
        weights.learn(losses(mood=0.25, score=8.0), {})
    # c exp(-s) L = 1/2 where the derivative by s vanishes: the weight is 1 / (2 L).
    assert float(weights.of("mood")) == pytest.approx(2.0, rel=1e-3)
    assert float(weights.of("score")) == pytest.approx(1 / 16, rel=1e-3)


def test_one_step_of_uncertainty_is_a_gradient_step_of_the_published_loss() -> None:
    start = {"loss:uncertainty:mood": 0.3, "loss:uncertainty:score": -0.2}
    s = {task: torch.tensor(start[f"loss:uncertainty:{task}"], requires_grad=True) for task in BOTH}
    total = torch.exp(-s["mood"]) * 0.7 + s["mood"] / 2 + torch.exp(-s["score"]) * 0.9 / 2 + s["score"] / 2
    total.backward()  # type: ignore[no-untyped-call]
    weights = UncertaintyWeights(BOTH, 0.1, start, CPU)
    weights.learn(losses(mood=0.7, score=0.9), {})
    kept = weights.numbers({})
    for task in BOTH:
        gradient = s[task].grad
        assert gradient is not None
        assert kept[f"loss:uncertainty:{task}"] == pytest.approx(float(s[task].detach() - 0.1 * gradient), rel=1e-5)


def test_uncertainty_learns_of_the_tasks_in_the_step_only_and_stays_in_bounds() -> None:
    weights = UncertaintyWeights(BOTH, 100.0, {}, CPU)
    weights.learn(losses(mood=1e6), {})
    assert weights.numbers({}) == {"loss:uncertainty:mood": LOG_BOUND, "loss:uncertainty:score": 0.0}
    weights.learn(losses(mood=0.0, score=0.0), {})
    assert weights.numbers({}) == {"loss:uncertainty:mood": -LOG_BOUND, "loss:uncertainty:score": -LOG_BOUND}


def test_dwa_weighs_by_how_little_the_loss_fell() -> None:
    numbers: dict[str, float] = {}
    for mood, score in ((1.0, 4.0), (0.5, 4.0)):
        weights = DynamicAverageWeights(["mood", "score"], 2.0, numbers)
        assert (weights.of("mood"), weights.of("score")) == (1.0, 1.0)  # until two rounds are known
        numbers |= weights.numbers({"mood": report(mood), "score": report(score)})
    weights = DynamicAverageWeights(["mood", "score"], 2.0, numbers)
    powers = math.exp(0.5 / 2), math.exp(1 / 2)
    assert weights.of("mood") == pytest.approx(2 * powers[0] / sum(powers))
    assert weights.of("score") == pytest.approx(2 * powers[1] / sum(powers))


def test_dwa_remembers_a_task_that_sat_a_round_out_and_survives_a_loss_of_zero() -> None:
    numbers = DynamicAverageWeights(["mood", "score"], 2.0, {}).numbers({"mood": report(1.0), "score": report(0.0)})
    numbers |= DynamicAverageWeights(["mood", "score"], 2.0, numbers).numbers({"mood": report(0.5)})
    assert numbers == {"loss:dwa:mood": 0.5, "loss:dwa-before:mood": 1.0, "loss:dwa:score": 0.0}
    numbers |= DynamicAverageWeights(["mood", "score"], 2.0, numbers).numbers({"score": report(1e300)})
    weights = DynamicAverageWeights(["mood", "score"], 2.0, numbers)
    assert weights.of("mood") + weights.of("score") == pytest.approx(2)
