from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import CoordinateMedian
from tests.server.aggregation.made_up import POOL, moved, points, update, updates_of

METHOD = CoordinateMedian(POOL)
elements = st.lists(st.integers(-5, 5), min_size=4, max_size=4)


def by_definition(values: list[int], weights: list[int]) -> float:
    """The middle of all minimisers of sum_k w_k |x_k - m|: each value repeated as often as it weighs."""
    repeated = np.repeat(values, weights)
    return float(np.median(repeated))


@given(st.lists(st.tuples(elements, st.integers(1, 9)), min_size=1, max_size=8))
def test_each_element_is_the_median_of_values_repeated_by_weight(clients: list[tuple[list[int], int]]) -> None:
    rows, counts = [row for row, _ in clients], [count for _, count in clients]
    found = moved(METHOD, updates_of(points(*rows), [count / sum(counts) for count in counts]))
    expected = [by_definition([row[at] for row in rows], counts) for at in range(4)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@given(st.integers(1, 60), st.integers(0, 99))
def test_with_equal_weights_it_is_the_plain_median(clients: int, seed: int) -> None:
    """Whatever 1/60 added thirty times is."""
    deltas = [torch.from_numpy(np.random.default_rng((seed, k)).normal(size=20)) for k in range(clients)]
    expected = np.median(np.stack([delta.numpy() for delta in deltas]), axis=0)
    np.testing.assert_allclose(moved(METHOD, updates_of(deltas)).numpy(), expected, rtol=1e-12)


def test_one_pinned_value() -> None:
    deltas = points([1, 10, -4], [2, -30, -4], [9, 20, 7])
    value = torch.tensor([100.0, 100.0, 100.0])
    updates = [update(c, w, d) for c, w, d in zip("abc", [0.2, 0.2, 0.6], deltas, strict=True)]
    assert CoordinateMedian().reduce(value, updates).tolist() == [109, 120, 107]  # c has more than half
    updates = [update(c, w, d) for c, w, d in zip("abc", [0.6, 0.6, 0.8], deltas, strict=True)]
    assert CoordinateMedian().reduce(value, updates).tolist() == [104, 120, 92]  # the weights sum to 2


def test_an_element_that_most_clients_left_alone_stays() -> None:
    deltas = points([0, 1], [0, 2], [5, 3])
    assert moved(METHOD, updates_of(deltas)).tolist() == [0, 2]
