"""Intervals for means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from experiments.intervals import Interval, bootstrap_interval, t_interval

VALUES = [0.042, 0.047, 0.039, 0.044, 0.051, 0.040, 0.043, 0.046]


def test_students_interval_is_scipys() -> None:
    found = t_interval(VALUES)
    expected = stats.ttest_1samp(VALUES, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(VALUES))
    assert found.count == 8


def test_a_higher_confidence_makes_a_wider_interval() -> None:
    assert t_interval(VALUES, 0.99).half_width > 1.2 * t_interval(VALUES, 0.95).half_width
    assert bootstrap_interval(VALUES, 0, 0.99).half_width > 1.1 * bootstrap_interval(VALUES, 0, 0.95).half_width


def test_the_bootstrap_is_near_students_and_follows_the_skew() -> None:
    near = bootstrap_interval(VALUES, 0)
    assert near.half_width == pytest.approx(t_interval(VALUES).half_width, rel=0.35)
    skewed = bootstrap_interval([0.04] * 7 + [0.2], 0)
    assert skewed.high - skewed.mean > 1.5 * (skewed.mean - skewed.low)


def test_the_bootstrap_depends_on_its_seed_alone() -> None:
    np.random.seed(1)  # the global state that must not matter
    first = bootstrap_interval(VALUES, 3)
    np.random.seed(2)
    assert bootstrap_interval(VALUES, 3) == first != bootstrap_interval(VALUES, 4)


def test_one_value_leaves_the_mean_open() -> None:
    open_interval = Interval(0.5, -math.inf, math.inf, 1)
    assert t_interval([0.5]) == bootstrap_interval([0.5], 0) == open_interval
    assert open_interval.holds(1e9)


def test_equal_values_leave_no_doubt() -> None:
    assert t_interval([0.5] * 4) == bootstrap_interval([0.5] * 4, 0) == Interval(0.5, 0.5, 0.5, 4)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one finite value"):
        t_interval(values)
    with pytest.raises(ValueError, match="at least one finite value"):
        bootstrap_interval(values, 0)


def test_the_interval_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-4)
