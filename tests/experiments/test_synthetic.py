"""Synthetic tasks: their relatedness is what was asked for, and nothing else differs."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ConfigError
from experiments.synthetic import SyntheticSpec, generate


def spec(cosine: float) -> SyntheticSpec:
    return SyntheticSpec(cosine, inputs=7, train=4000, validation=100, test=100)


@pytest.mark.parametrize("cosine", [1.0, 0.3, 0.0, -0.5, -1.0])
def test_the_weight_vectors_have_the_cosine_and_the_length(cosine: float) -> None:
    weights = generate(SyntheticSpec(cosine, inputs=7, scale=2.0, train=50, validation=2, test=2), 3).weights
    assert weights[0] @ weights[1] == pytest.approx(4 * cosine, abs=1e-12)
    assert np.linalg.norm(weights, axis=1) == pytest.approx([2, 2])


def test_labels_are_less_alike_the_smaller_the_cosine() -> None:
    found = [generate(spec(cosine), 1).label_correlation for cosine in (1.0, 0.9, 0.5, 0.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.98
    assert abs(found[-1]) < 0.05
    assert found[1] < 0.85  # the sinusoids make labels differ more than the weights do


def test_a_task_is_its_formula() -> None:
    noiseless = SyntheticSpec(
        0.4, inputs=3, frequencies=(2.0,), phases=(0.5,), noise=0, train=200, validation=5, test=9
    )
    tasks = generate(noiseless, 2)
    for rows, count in ((tasks.train, 200), (tasks.validation, 5), (tasks.test, 9)):
        projections = rows.features @ tasks.weights.T
        expected = projections + np.sin(2 * projections + 0.5)
        assert rows.labels.shape == (count, 2)
        slope = np.polyfit(expected[:, 1], rows.labels[:, 1], 1)
        assert np.allclose(np.polyval(slope, expected[:, 1]), rows.labels[:, 1], atol=1e-5)


def test_labels_are_standardised_by_the_training_rows() -> None:
    labels = generate(spec(0.5), 5).train.labels
    assert labels.mean(axis=0) == pytest.approx([0, 0], abs=1e-5)
    assert labels.std(axis=0) == pytest.approx([1, 1], abs=1e-5)


def test_tasks_of_one_seed_share_inputs_and_the_first_task_whatever_the_cosine() -> None:
    near, far, other = generate(spec(0.9), 4), generate(spec(-0.5), 4), generate(spec(0.9), 5)
    assert np.array_equal(near.train.features, far.train.features)
    assert np.array_equal(near.test.labels[:, 0], far.test.labels[:, 0])
    assert not np.array_equal(near.test.labels[:, 1], far.test.labels[:, 1])
    assert not np.array_equal(near.train.features, other.train.features)


@pytest.mark.parametrize("correlation", [0.8, -0.3])
def test_linear_labels_have_the_correlation_that_was_asked_for(correlation: float) -> None:
    assert generate(SyntheticSpec.linear(correlation, noise=0.2, inputs=5), 1).label_correlation == pytest.approx(
        correlation, abs=0.02
    )


def test_linear_labels_can_not_be_more_alike_than_noise_lets_them() -> None:
    with pytest.raises(ConfigError, match=r"0\.99 .*allowed: -0\.9091 to 0\.9091"):
        SyntheticSpec.linear(0.99, noise=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cosine": 1.1}, "-1 to 1"),
        ({"cosine": float("nan")}, "-1 to 1"),
        ({"inputs": 1}, "at least 2"),
        ({"phases": (1.0,)}, "4 frequencies and 1 phases"),
        ({"test": 1}, "at least 2 rows"),
        ({"noise": -1.0}, "noise -1.0"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticSpec(**{"cosine": 0.5, **wrong})  # type: ignore[arg-type]  # wrong values are the point
