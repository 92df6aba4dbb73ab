from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from server.aggregation import DenseDelta, GeometricMedian, SlotUpdate
from tests.server.aggregation.made_up import POOL, moved, points, updates_of

METHOD = GeometricMedian(pool=POOL)


@given(st.integers(0, 200), st.integers(3, 9))
def test_nothing_is_closer_to_all_deltas(seed: int, clients: int) -> None:
    generator = np.random.default_rng(seed)
    table, weights = generator.normal(size=(clients, 3)), generator.uniform(0.1, 1, clients)

    def objective(point: np.ndarray) -> float:
        return float((weights * np.linalg.norm(table - point, axis=1)).sum())

    updates = updates_of([torch.from_numpy(row) for row in table], weights.tolist())
    found = moved(METHOD, updates).numpy() / weights.sum()
    best = minimize(objective, weights @ table / weights.sum(), method="Nelder-Mead", options={"xatol": 1e-8}).fun
    # The steps get short where the best point lies close to one of the deltas.
    assert objective(found) <= best * (1 + 4e-3)


@given(st.integers(0, 99))
def test_of_symmetric_points_it_is_the_centre(seed: int) -> None:
    generator = np.random.default_rng(seed)
    centre, arms = generator.normal(size=4), generator.normal(size=(3, 4))
    deltas = [torch.from_numpy(centre + sign * arm) for arm in arms for sign in (1, -1)]
    np.testing.assert_allclose(moved(METHOD, updates_of(deltas)).numpy(), centre, atol=1e-7)


def test_on_a_line_it_is_the_weighted_median() -> None:
    deltas = points([0.0, 0.0], [1.0, 1.0], [9.0, 9.0])
    assert moved(METHOD, updates_of(deltas)).tolist() == pytest.approx([1, 1], abs=1e-4)
    heavy = updates_of(deltas, [0.6, 0.2, 0.2])
    assert moved(METHOD, heavy).tolist() == pytest.approx([0, 0], abs=1e-4)


def test_more_than_half_of_the_weight_decides_and_less_does_not() -> None:
    honest, bad = points([1.0, 2.0])[0], points([-1e6, 1e6])[0]
    # Four collude at one place; they have 4/9 of the weight.
    found = moved(METHOD, updates_of([honest] * 5 + [bad] * 4))
    torch.testing.assert_close(found, honest, rtol=1e-3, atol=1e-3)
    found = moved(METHOD, updates_of([honest] * 4 + [bad] * 5))
    torch.testing.assert_close(found, bad, rtol=1e-3, atol=1e-3)


def test_deltas_that_are_mostly_zero_do_not_divide_by_zero() -> None:
    deltas = points([0, 0], [0, 0], [0, 0], [4, 4])
    assert moved(METHOD, updates_of(deltas)).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert moved(GeometricMedian(iterations=2000), updates_of(deltas)).tolist() == pytest.approx([0, 0], abs=1e-9)


def test_squares_at_the_end_of_float64_count_as_infinite() -> None:
    deltas = [*points([1, 0], [1, 1], [1, 2]), torch.full((2,), 9e153, dtype=torch.float64)]
    found = moved(METHOD, updates_of(deltas, [0.02, 0.02, 0.02, 0.94]))
    assert found.tolist() == pytest.approx([1, 1], abs=1e-4)


def test_data_is_read_twice_however_many_steps_it_takes() -> None:
    read = 0

    def reader_of(tensor: torch.Tensor) -> DenseDelta:
        def reader(first: int, last: int) -> torch.Tensor:
            nonlocal read
            read += last - first
            return tensor[first:last]

        return DenseDelta((len(tensor),), reader)

    tensors = [torch.randn(100, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    GeometricMedian(iterations=50).reduce(
        torch.zeros(100), [SlotUpdate(f"c{k}", 0.2, 1, reader_of(tensor)) for k, tensor in enumerate(tensors)]
    )
    assert read == 2 * 5 * 100


def test_one_pinned_value() -> None:
    # The Fermat point of a right-angled isosceles triangle lies at (3 - sqrt 3) / 6 on both axes.
    deltas = points([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    fermat = (3 - 3**0.5) / 6
    assert moved(GeometricMedian(), updates_of(deltas, [2.0, 2.0, 2.0])).tolist() == pytest.approx(
        [6 * fermat, 6 * fermat], rel=1e-6
    )
