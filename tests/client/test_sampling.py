from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.sampling import EVEN_PART, share_steps, task_shares, weakness_of
from common.metrics import Evaluation
from common.tasks import TaskSpec
from common.training import Position, TrainSettings

sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100_000), min_size=1)
samplings = st.sampled_from(["proportional", "even", "sqrt", "temperature", "annealed", "performance"])

ONLY = Position(1, 1)


def shares(sampling: str, sizes: dict[str, int], position: Position = ONLY, **more: object) -> dict[str, float]:
    settings = TrainSettings.model_validate({"task_sampling": sampling, **more})
    return task_shares(settings, sizes, position)


@pytest.mark.parametrize(
    ("sampling", "ratio"),
    [("proportional", 10_000), ("even", 1), ("sqrt", 100), ("temperature", 10_000**0.2)],
)
def test_shares_follow_the_sizes_as_named(sampling: str, ratio: float) -> None:
    found = shares(sampling, {"big": 10_000, "small": 1})
    assert found["big"] / found["small"] == pytest.approx(ratio)


def test_temperature_one_is_proportional_and_two_is_the_square_root() -> None:
    known = {"a": 7, "b": 300, "c": 45}
    assert shares("temperature", known, sampling_temperature=1) == pytest.approx(shares("proportional", known))
    assert shares("temperature", known, sampling_temperature=2) == pytest.approx(shares("sqrt", known))


def test_annealing_goes_from_proportional_to_nearly_even_over_the_rounds() -> None:
    known = {"big": 10_000, "small": 1}
    ratios = [
        found["big"] / found["small"]
        for number in range(1, 6)
        if (found := shares("annealed", known, Position(number, 5)))
    ]
    assert ratios == pytest.approx([10_000**power for power in (1.0, 0.8, 0.6, 0.4, 0.2)])
    assert shares("annealed", known, Position(1, 1)) == pytest.approx(shares("proportional", known))


@given(sizes, samplings, st.integers(1, 9), st.integers(0, 9), st.data())
def test_shares_are_positive_and_sum_to_one(
    sizes: dict[str, int], sampling: str, round_: int, later: int, data: st.DataObject
) -> None:
    weakness = data.draw(st.dictionaries(st.sampled_from(sorted(sizes)), st.floats(0, 1)))
    settings = TrainSettings.model_validate({"task_sampling": sampling})
    found = task_shares(settings, sizes, Position(round_, round_ + later), weakness)
    assert list(found) == list(sizes)
    assert sum(found.values()) == pytest.approx(1)
    floor = EVEN_PART / len(sizes) if sampling == "performance" else 0
    assert all(share > 0 and share >= floor - 1e-12 for share in found.values())


def test_the_weakest_task_comes_most_often_and_an_unknown_one_as_the_average() -> None:
    settings = TrainSettings(task_sampling="performance")
    found = task_shares(settings, dict.fromkeys("abc", 10), Position(1, 1), {"a": 0.1, "b": 0.5})
    part = 1 - EVEN_PART
    assert found == pytest.approx(
        {t: EVEN_PART / 3 + part * w / 0.9 for t, w in {"a": 0.1, "b": 0.5, "c": 0.3}.items()}
    )
    for none in ({}, {"a": 0.0, "b": 0.0}):
        assert task_shares(settings, {"a": 9, "b": 1}, Position(1, 1), none) == pytest.approx({"a": 0.5, "b": 0.5})


def spec(metric: str) -> TaskSpec:
    regression = metric in ("pearson", "spearman", "mse", "mae")
    kind = {"kind": "regression"} if regression else {"kind": "classification", "labels": ["a", "b"]}
    return TaskSpec.model_validate({"name": "t", "metrics": [metric], **kind})


@pytest.mark.parametrize(
    ("metric", "value", "weakness"),
    [
        ("accuracy", 0.9, 0.1),
        ("f1", 1.0, 0.0),
        ("auc", 0.5, 0.5),
        ("matthews", -0.3, 1.0),
        ("pearson", 0.25, 0.75),
        ("mse", 0.5, 0.25),  # the labels' variance is 2
        ("mse", 5.0, 1.0),
        ("mae", 0.3, 0.25),  # their mean distance from the median is 1.2
    ],
)
def test_weakness_is_the_distance_from_a_perfect_score(metric: str, value: float, weakness: float) -> None:
    labels = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    assert weakness_of(spec(metric), Evaluation({metric: value}, 1.0, 5), labels) == pytest.approx(weakness)


def test_errors_on_labels_that_are_all_the_same_are_total() -> None:
    labels = torch.ones(4)
    assert weakness_of(spec("mse"), Evaluation({"mse": 1e-3}, 1.0, 4), labels) == 1
    assert weakness_of(spec("mae"), Evaluation({"mae": 0.0}, 1.0, 4), labels) == 0


@given(st.integers(1, 200), sizes, samplings, st.integers(0, 1000))
def test_steps_add_up_and_round_at_most_to_the_next_one(
    total: int, sizes: dict[str, int], sampling: str, seed: int
) -> None:
    parts = shares(sampling, sizes)
    steps = share_steps(total, parts, np.random.default_rng(seed))
    assert sum(steps.values()) == total
    for task, count in steps.items():
        assert abs(count - total * parts[task]) < 1 + 1e-9


def test_with_fewer_steps_than_tasks_each_gets_its_turn_in_proportion() -> None:
    turns = Counter[str]()
    for seed in range(2000):
        turns += Counter(share_steps(1, {"a": 0.75, "b": 0.25}, np.random.default_rng(seed)))
    assert turns["a"] / 2000 == pytest.approx(0.75, abs=0.03)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.integers(0, 1000))
def test_whole_shares_are_met_exactly(sizes: list[int], seed: int) -> None:
    known = {str(place): size for place, size in enumerate(sizes)}
    parts = shares("proportional", known)
    assert share_steps(sum(sizes), parts, np.random.default_rng(seed)) == known
