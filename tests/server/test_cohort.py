"""Whom a round asks: a draw that follows from seed, round and membership alone."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cohort import Cohort, sample_cohort

clients = st.sets(st.text("abcxyz", min_size=1, max_size=3), max_size=12)


@given(clients, st.integers(0, 2**53 - 1), st.integers(1, 50), st.integers(1, 100))
def test_the_order_of_clients_does_not_matter(ids: set[str], seed: int, round_id: int, percent: int) -> None:
    forth = sample_cohort(sorted(ids), seed=seed, round_id=round_id, fraction=percent / 100, count=None)
    back = sample_cohort(sorted(ids, reverse=True), seed=seed, round_id=round_id, fraction=percent / 100, count=None)
    assert forth == back
    assert forth.clients <= ids


@given(st.integers(0, 200), st.integers(1, 100))
def test_a_fraction_is_rounded_up_but_not_by_rounding_errors(number: int, percent: int) -> None:
    ids = [f"c{i}" for i in range(number)]
    cohort = sample_cohort(ids, seed=1, round_id=1, fraction=percent / 100, count=None)
    assert len(cohort.clients) == ceil(Fraction(percent, 100) * number)


@given(clients, st.integers(1, 15))
def test_a_count_is_a_limit(ids: set[str], count: int) -> None:
    assert len(sample_cohort(ids, seed=1, round_id=1, fraction=None, count=count).clients) == min(count, len(ids))


@given(clients)
def test_with_neither_everybody_is_asked(ids: set[str]) -> None:
    assert sample_cohort(ids, seed=1, round_id=1, fraction=None, count=None) == Cohort(frozenset(ids))


@pytest.mark.parametrize("changed", [{"seed": 8}, {"round_id": 2}])
def test_seed_and_round_change_the_draw(changed: dict[str, int]) -> None:
    ids = [f"c{i}" for i in range(100)]
    first = sample_cohort(ids, **{"seed": 7, "round_id": 1, **changed}, fraction=None, count=10)
    assert first != sample_cohort(ids, seed=7, round_id=1, fraction=None, count=10)


def test_everybody_has_a_turn() -> None:
    ids = [f"c{i}" for i in range(10)]
    asked: dict[str, int] = dict.fromkeys(ids, 0)
    for round_id in range(1000):
        for client_id in sample_cohort(ids, seed=3, round_id=round_id, fraction=None, count=2).clients:
            asked[client_id] += 1
    assert min(asked.values()) > 150  # 200 expected; 4 standard deviations are 51
    assert max(asked.values()) < 250


@given(st.integers(1, 60), st.integers(1, 15), st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_over_selection_asks_for_more_and_wants_no_more(number: int, count: int, share: float) -> None:
    ids = [f"c{i}" for i in range(number)]
    cohort = sample_cohort(ids, seed=1, round_id=1, fraction=None, count=count, over_selection=share)
    extra = ceil(Fraction(str(share)) * count)
    assert len(cohort.clients) == min(number, count + extra)
    assert cohort.wanted == (count if len(cohort.clients) > count else None)
