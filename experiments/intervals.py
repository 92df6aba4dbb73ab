"""Means over repetitions with the interval that they leave for the true mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

CONFIDENCE: Final = 0.95
#: Samples that the bootstrap draws; the ends of its interval then move by about a hundredth of its width.
RESAMPLES: Final = 9_999


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where the true mean lies with the confidence asked for.

    Attributes:
        mean: of the values.
        low, high: the interval's ends; infinite where there was one value, which says nothing about the spread.
        count: how many values there were.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2

    def holds(self, value: float) -> bool:
        """Whether the interval holds this value."""
        return self.low <= value <= self.high


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean with Student's interval: exact for normal values, good for means of a few seeds.

    Args:
        values: one per repetition, independent of each other; differences of pairs where two methods share seeds.
        confidence: between 0 and 1.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    numbers = _checked(values)
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    half = float(stats.t.ppf((1 + confidence) / 2, len(numbers) - 1)) * error
    return Interval(mean, mean - half, mean + half, len(numbers))


def bootstrap_interval(values: Sequence[float], seed: int, confidence: float = CONFIDENCE) -> Interval:
    """The mean with the bias-corrected, accelerated bootstrap interval (Efron 1987), for values that are skewed.

    With fewer than about eight values it is too narrow: `t_interval` is the safer one there.

    Args:
        values: one per repetition, independent of each other.
        seed: of the samples drawn.
        confidence: between 0 and 1.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    numbers = _checked(values)
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    if np.ptp(numbers) == 0:  # the acceleration is then 0 / 0
        return Interval(mean, mean, mean, len(numbers))
    result = stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    ends = result.confidence_interval
    return Interval(mean, float(ends.low), float(ends.high), len(numbers))


def _checked(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"an interval is of at least one finite value, not of {list(values)}")
    return numbers
