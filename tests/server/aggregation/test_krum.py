from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.aggregation import Krum
from server.aggregation.krum import num_neighbours
from tests.server.aggregation.made_up import POOL, moved, points, updates_of

clouds = st.lists(st.lists(st.integers(-4, 4), min_size=3, max_size=3), min_size=1, max_size=9)


def ranked_by_definition(deltas: list[Tensor], byzantine: int) -> list[int]:
    """Scores by trying every set of neighbours: the smallest sum of squared distances."""
    count = len(deltas)
    size = min(max(1, count - byzantine - 2), count - 1)
    scores = []
    for i in range(count):
        sets = itertools.combinations([j for j in range(count) if j != i], size)
        scores.append(min(sum(float((deltas[i] - deltas[j]).square().sum()) for j in chosen) for chosen in sets))
    return sorted(range(count), key=lambda i: (scores[i], i))


@given(clouds, st.integers(0, 4), st.floats(0.1, 2))
def test_it_takes_the_delta_that_a_search_by_definition_takes(
    cloud: list[list[int]], byzantine: int, total: float
) -> None:
    deltas = points(*cloud)
    found = moved(Krum(byzantine, POOL), updates_of(deltas, [total / len(deltas)] * len(deltas)))
    expected = deltas[ranked_by_definition(deltas, byzantine)[0]]
    torch.testing.assert_close(found, total * expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("clients", "byzantine", "neighbours"),
    [(10, 3, 5), (10, 0, 8), (5, 2, 1), (4, 2, 1), (3, 5, 1), (2, 0, 1), (1, 0, 0)],
)
def test_a_score_counts_one_neighbour_at_least(clients: int, byzantine: int, neighbours: int) -> None:
    assert num_neighbours(clients, byzantine) == neighbours


def test_of_equal_scores_the_first_client_is_taken() -> None:
    # Two pairs, each as close as the other.
    deltas = points([0, 0], [0, 1], [9, 0], [9, 1])
    assert moved(Krum(1, POOL), updates_of(deltas)).tolist() == [0, 0]
    assert moved(Krum(1, POOL), updates_of(deltas[::-1])).tolist() == [9, 1]
    assert moved(Krum(0, POOL), updates_of(points([5], [7]))).tolist() == [5]


def test_small_differences_far_from_zero_are_seen() -> None:
    """By inner products the first three would be as close to each other as rounding makes them."""
    base = 1e9
    deltas = points([base, 0], [base + 0.5, 0], [base + 0.75, 0], [0, 0])
    assert moved(Krum(0, POOL), updates_of(deltas)).tolist() == [base + 0.5, 0]


def test_one_pinned_value() -> None:
    deltas = points([0.0], [1.0], [1.5], [2.5], [40.0])
    # Two neighbours: 1 + 2.25, 0.25 + 1, 0.25 + 1, 1 + 2.25 ... and the first of the equal ones.
    assert moved(Krum(1), updates_of(deltas, [0.4] * 5)).item() == pytest.approx(2.0)
