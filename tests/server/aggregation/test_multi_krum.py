from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import Krum, MultiKrum, WeightedSum
from tests.server.aggregation.made_up import POOL, moved, points, updates_of
from tests.server.aggregation.test_krum import clouds, ranked_by_definition


@given(clouds, st.integers(0, 3), st.integers(1, 9), st.lists(st.floats(0.1, 1), min_size=9, max_size=9))
def test_it_is_the_weighted_mean_of_the_best_by_definition(
    cloud: list[list[int]], byzantine: int, keep: int, some_weights: list[float]
) -> None:
    deltas = points(*cloud)
    weights = some_weights[: len(deltas)]
    kept = ranked_by_definition(deltas, byzantine)[:keep]
    found = moved(MultiKrum(byzantine, keep, POOL), updates_of(deltas, weights))
    mean = sum((weights[k] * deltas[k] for k in kept), torch.zeros(3)) / sum(weights[k] for k in kept)
    torch.testing.assert_close(found, sum(weights) * mean, rtol=1e-10, atol=1e-10)


def test_keeping_all_is_the_weighted_sum_and_keeping_one_is_krum() -> None:
    deltas = [torch.randn(50, generator=torch.Generator().manual_seed(k)) for k in range(6)]
    updates = updates_of(deltas, [0.1, 0.3, 0.2, 0.15, 0.05, 0.2])
    for keep in (6, 100):
        assert torch.equal(moved(MultiKrum(1, keep, POOL), updates), moved(WeightedSum(POOL), updates))
    torch.testing.assert_close(moved(MultiKrum(1, 1, POOL), updates), moved(Krum(1, POOL), updates))


@pytest.mark.parametrize(("clients", "kept"), [(7, 3), (5, 1), (3, 1), (1, 1)])
def test_by_default_it_keeps_as_many_as_a_score_counts(clients: int, kept: int) -> None:
    deltas = points(*([float(k)] for k in range(clients)))
    updates = updates_of(deltas)
    assert torch.equal(moved(MultiKrum(2, pool=POOL), updates), moved(MultiKrum(2, kept, POOL), updates))


def test_one_pinned_value() -> None:
    deltas = points([0.0], [1.0], [1.5], [2.5], [40.0])
    # Best two of these: 1 and 1.5.
    assert moved(MultiKrum(1, 2), updates_of(deltas, [0.2] * 5)).item() == pytest.approx(1.25)
