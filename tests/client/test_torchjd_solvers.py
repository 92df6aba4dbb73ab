"""Our solvers against answers worked out by hand and, for three gradients, those of torchjd with cvxpy and quadprog."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import UPGradWeighting

from client.torchjd_solvers import CAGradWeighting, LeastSquaresProjector

THREE = torch.tensor([[1.0, 2.0, 0.0], [-3.0, 1.0, 1.0], [0.5, -1.0, 2.0]], dtype=torch.float64)


def jacobian(seed: int, tasks: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(tasks, width)))


def test_three_gradients_get_the_weights_that_torchjd_finds() -> None:
    gramian = THREE @ THREE.T
    cagrad = torch.tensor([0.5972, 1 / 3, 0.5504], dtype=torch.float64)  # torchjd 0.18.0 with cvxpy 1.9.3
    torch.testing.assert_close(CAGradWeighting(0.5)(gramian), cagrad, rtol=0, atol=1e-4)
    upgrad = torch.tensor([0.5216, 0.3928, 0.4874], dtype=torch.float64)  # ... with quadprog 0.1.14
    found = UPGradWeighting(projector=LeastSquaresProjector())(gramian)
    torch.testing.assert_close(found, upgrad, rtol=0, atol=1e-4)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 12))
def test_upgrad_conflicts_with_no_gradient_singular_or_not(seed: int, tasks: int, width: int) -> None:
    rows = jacobian(seed, tasks, width)
    direction = UPGradWeighting(projector=LeastSquaresProjector())(rows @ rows.T) @ rows
    assert float((rows @ direction).min()) >= -1e-9 * float(rows.norm() ** 2)


def test_gradients_that_agree_are_left_alone_by_upgrad() -> None:
    rows = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
    weights = UPGradWeighting(projector=LeastSquaresProjector())(rows @ rows.T)
    torch.testing.assert_close(weights, torch.full((2,), 0.5, dtype=torch.float64))


@given(st.integers(0, 10_000), st.integers(2, 4), st.floats(0, 0.9), st.sampled_from([1e-6, 1.0, 1e6]))
def test_cagrad_stays_in_its_ball_and_helps_the_worst_task_as_far_as_it_can(
    seed: int, tasks: int, c: float, scale: float
) -> None:
    rows = jacobian(seed, tasks, 12)
    weights = CAGradWeighting(c)(scale**2 * rows @ rows.T)
    direction, mean = weights @ rows, rows.mean(dim=0)
    assert float((direction - mean).norm()) == pytest.approx(c * float(mean.norm()), rel=1e-4, abs=1e-9)
    worst = float((rows @ direction).min())
    for other in np.random.default_rng(seed).normal(size=(50, 12)):
        step = torch.from_numpy(other)
        rival = mean + c * mean.norm() * step / step.norm()
        assert worst >= float((rows @ rival).min()) - 1e-4


def test_without_any_gradient_there_is_no_direction() -> None:
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    assert CAGradWeighting(0.5)(nothing).tolist() == [0, 0]
    assert UPGradWeighting(projector=LeastSquaresProjector())(nothing).tolist() == [0.5, 0.5]
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert CAGradWeighting(0.5)(opposed).tolist() == [0, 0]
