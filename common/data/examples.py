"""Labelled rows of one task, checked: what a model family encodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.data.problems import rows_text
from common.errors import DataError

Column = Sequence[str] | NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Rows of one split of one task.

    Attributes:
        task: the task's name.
        split: ``train``, ``validation`` or ``test``.
        columns: the task's text columns (``list[str]``), then the feature columns asked for: text
            as ``list[str]``, numbers as float64 arrays with NaN where there is none.
        labels: int64 class ids, or float32 scores; one per row.
        rows: int64, the 1-based number of each row among the data rows of its source.
        source: where the rows come from, for reports; says "synthetic" when they are.
        weights: float32, what each row weighs in the loss, 0 or more; None where all weigh 1.
    """

    task: str
    split: str
    columns: Mapping[str, Column]
    labels: NDArray[np.int64] | NDArray[np.float32]
    rows: NDArray[np.int64]
    source: str
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The rows at these 0-based positions, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        positions: list[int] = chosen.tolist()
        columns: dict[str, Column] = {
            name: values[chosen] if isinstance(values, np.ndarray) else list(map(values.__getitem__, positions))
            for name, values in self.columns.items()
        }
        weights = None if self.weights is None else self.weights[chosen]
        return Examples(self.task, self.split, columns, self.labels[chosen], self.rows[chosen], self.source, weights)

    def numbers(self, column: str, *, allow_missing: bool = False) -> NDArray[np.float64]:
        """A feature column as numbers, shape (N,); an absent value is NaN.

        Raises:
            DataError: a value is no finite number, or is absent without `allow_missing`.
        """
        values = self.columns[column]
        if isinstance(values, np.ndarray):
            numbers = values
            bad = np.isinf(numbers)
        else:
            numbers, bad = _parse(values)
        if not allow_missing:
            bad = bad | np.isnan(numbers)
        if bad.any():
            positions = np.flatnonzero(bad)
            raise DataError(
                f"{self.source}: column {column!r} must hold numbers; "
                f"{rows_text(self.rows[positions])}: found {values[int(positions[0])]!r}"
            )
        return numbers

    def categories(self, column: str) -> list[str]:
        """A feature column as category names: whole numbers without a trailing ``.0``, an absent value as ``""``."""
        values = self.columns[column]
        if isinstance(values, np.ndarray):
            return ["" if np.isnan(value) else f"{value:.15g}" for value in values.tolist()]
        return list(values)


def _parse(values: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers (NaN for an empty field) and where there is none to be read."""
    known = {value: _number(value) for value in set(values)}
    numbers = np.fromiter(map(known.__getitem__, values), dtype=np.float64, count=len(values))
    return np.where(np.isinf(numbers), np.nan, numbers), np.isinf(numbers)


def _number(text: str) -> float:
    """NaN for an empty field, infinity for what is no finite number."""
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return math.inf
    return math.inf if text and not math.isfinite(number) else number
