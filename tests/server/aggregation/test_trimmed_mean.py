from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from server.aggregation import CoordinateMedian, TrimmedMean, WeightedSum
from server.aggregation.trimmed_mean import num_cut
from tests.server.aggregation.made_up import POOL, moved, points, updates_of


def by_definition(values: list[int], weights: list[int], cut: int) -> float:
    """The mean over all orders in which equal values can be cut, of exact fractions."""
    total, weight = Fraction(0), Fraction(0)
    ranked = sorted(values)
    for value, share in zip(values, weights, strict=True):
        places = [place for place, other in enumerate(ranked) if other == value]
        kept = Fraction(sum(cut <= place < len(values) - cut for place in places), len(places))
        total += share * kept * value
        weight += share * kept
    return float(total / weight)


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(1, 9)), min_size=1, max_size=9),
    st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.49]),
)
def test_it_is_the_weighted_mean_of_what_is_left(clients: list[tuple[int, int]], trim: float) -> None:
    values, weights = [value for value, _ in clients], [weight for _, weight in clients]
    updates = updates_of(points(*([value] for value in values)), [w / sum(weights) for w in weights])
    found = moved(TrimmedMean(trim, POOL), updates).item()
    assert found == pytest.approx(by_definition(values, weights, num_cut(trim, len(values))), rel=1e-12, abs=1e-12)


@given(st.integers(1, 12), st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.2, 0.4]))
def test_with_equal_weights_it_is_scipys(clients: int, seed: int, trim: float) -> None:
    table = np.random.default_rng(seed).normal(size=(clients, 20))
    found = moved(TrimmedMean(trim, POOL), updates_of([torch.from_numpy(row) for row in table]))
    # scipy rounds the cut down.
    expected = trim_mean(table, (num_cut(trim, clients) + 1e-9) / clients, axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_nothing_cut_is_the_weighted_sum_and_all_but_the_middle_the_median() -> None:
    deltas = [torch.from_numpy(np.random.default_rng(k).normal(size=300)) for k in range(7)]
    for weights in ([1 / 7] * 7, [0.1 + k for k in range(7)]):
        updates = updates_of(deltas, weights)
        torch.testing.assert_close(moved(TrimmedMean(0.0, POOL), updates), moved(WeightedSum(POOL), updates))
    equal = updates_of(deltas)
    torch.testing.assert_close(moved(TrimmedMean(0.49, POOL), equal), moved(CoordinateMedian(POOL), equal))


@pytest.mark.parametrize(
    ("trim", "clients", "cut"),
    [(0.0, 10, 0), (0.3, 10, 3), (0.25, 10, 3), (0.07, 100, 7), (0.1, 1, 0), (0.1, 2, 0), (0.1, 3, 1), (0.49, 4, 1)],
)
def test_the_cut_is_rounded_up_and_leaves_something(trim: float, clients: int, cut: int) -> None:
    assert num_cut(trim, clients) == cut


def test_claimed_examples_do_not_buy_a_place_outside_the_honest_values() -> None:
    deltas = points([1.0], [2.0], [3.0], [1e9])
    found = moved(TrimmedMean(0.25, POOL), updates_of(deltas, [1e-6, 1e-6, 1e-6, 1.0])).item()
    assert 2.0 <= found / (1.0 + 3e-6) <= 3.0


def test_one_pinned_value() -> None:
    deltas = points([0, 5], [1, 5], [3, 5], [100, -7])
    # The middle ones of 0, 1, 3, 100 by 0.2 and 0.3; of three times 5 one is cut.
    found = moved(TrimmedMean(0.25), updates_of(deltas, [0.1, 0.2, 0.3, 0.4]))
    assert found.tolist() == pytest.approx([(0.2 * 1 + 0.3 * 3) / 0.5, 5.0], rel=1e-15)


@pytest.mark.parametrize("trim", [-0.1, 0.5, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(trim: float) -> None:
    with pytest.raises(ValueError, match="trim must be"):
        TrimmedMean(trim)
