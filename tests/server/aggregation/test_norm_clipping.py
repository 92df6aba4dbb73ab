from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import NormClipping, WeightedSum
from tests.server.aggregation.made_up import POOL, moved, points, updates_of


@given(st.integers(0, 99), st.integers(1, 6), st.floats(0.01, 20))
def test_each_delta_is_cut_to_the_bound_and_keeps_its_direction(seed: int, clients: int, bound: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = [torch.randn(30, generator=generator, dtype=torch.float64) * 2**k for k in range(clients)]
    weights = [0.1 * (k + 1) for k in range(clients)]
    found = moved(NormClipping(bound, POOL), updates_of(deltas, weights))
    cut = [w * d * min(1.0, bound / float(d.norm())) for w, d in zip(weights, deltas, strict=True)]
    torch.testing.assert_close(found, torch.stack(cut).sum(0), rtol=1e-12, atol=1e-12)
    assert found.norm() <= sum(weights) * bound * (1 + 1e-12)


def test_without_limit_it_is_the_weighted_sum() -> None:
    deltas = [torch.randn(50, generator=torch.Generator().manual_seed(k)) * 10**k for k in range(5)]
    updates = updates_of(deltas, [0.1, 0.3, 0.2, 0.15, 0.25])
    for bound in (math.inf, 1e9):
        assert torch.equal(moved(NormClipping(bound, POOL), updates), moved(WeightedSum(POOL), updates))


@pytest.mark.parametrize(
    ("lengths", "bound"), [([1, 2, 100], 2), ([1, 100], 1), ([1, 2, 100, 200], 2), ([7], 7), ([0, 0, 5], 0)]
)
def test_left_out_the_bound_is_the_median_length_the_smaller_of_two(lengths: list[float], bound: float) -> None:
    deltas = points(*([length, 0.0] for length in lengths))
    expected = sum(min(length, bound) for length in lengths) / len(lengths)
    assert moved(NormClipping(pool=POOL), updates_of(deltas)).tolist() == pytest.approx([expected, 0])


def test_a_single_client_is_clipped_by_a_given_bound() -> None:
    assert moved(NormClipping(1.0, POOL), updates_of(points([3.0, 4.0]), [0.5])).tolist() == pytest.approx([0.3, 0.4])


def test_one_pinned_value() -> None:
    deltas = points([3.0, 4.0], [0.0, 1.0])
    found = moved(NormClipping(2.5), updates_of(deltas, [0.5, 0.5]))
    assert found.tolist() == pytest.approx([0.75, 1.5], rel=1e-15)
