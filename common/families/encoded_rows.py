"""Tabular rows of one task as numbers: categories stay codes until a batch is put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class EncodedRows:
    """N rows of numeric and categorical columns.

    Attributes:
        numeric: (N, A) float32, scaled values and missing indicators as they enter the model.
        codes: (N, K) int32, position of each category's one-hot entry among all one-hot entries; -1
            for a value that is none of the declared ones.
        width: number of one-hot entries of all K columns.
        labels: (N,) int64 or float32.
        weights: (N,) float32, what each row weighs in the loss; None where all weigh 1.
    """

    numeric: NDArray[np.float32]
    codes: NDArray[np.int32]
    width: int
    labels: Tensor
    weights: Tensor | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) ones: every row costs the same."""
        return np.ones(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.numeric)

    def collate(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """``features`` of shape (B, A + width) float32 for these rows."""
        return collate_rows([(self, indices)])

    def take(self, indices: NDArray[np.int64]) -> EncodedRows:
        """These rows as rows of their own, in this order: a part of a split."""
        chosen = torch.from_numpy(indices)
        weights = None if self.weights is None else self.weights[chosen]
        return EncodedRows(self.numeric[indices], self.codes[indices], self.width, self.labels[chosen], weights)


def joinable_rows(splits: Iterable[object]) -> bool:
    """Whether rows of these splits can stand in one batch, as `collate_rows` makes it: all tabular, equally wide."""
    known = list(splits)
    rows = [split for split in known if isinstance(split, EncodedRows)]
    return len(rows) == len(known) and len({(split.numeric.shape[1], split.width) for split in rows}) <= 1


def collate_rows(parts: Sequence[tuple[EncodedRows, NDArray[np.int64]]]) -> dict[str, Tensor]:
    """``features`` of shape (B, A + width) float32 for rows of several splits, one split's after the other's.

    Args:
        parts: at least one split with the numbers of its rows; `joinable_rows`.

    Raises:
        ValueError: the splits are not joinable.
    """
    if not joinable_rows(split for split, _ in parts):
        raise ValueError("rows of different columns can't stand in one batch")
    first, numbers = parts[0][0], parts[0][0].numeric.shape[1]
    features = np.zeros((sum(len(indices) for _, indices in parts), numbers + first.width), dtype=np.float32)
    start = 0
    for split, indices in parts:
        part = features[start : start + len(indices)]
        entries = split.codes.take(indices, axis=0) + (np.arange(len(indices)) * part.shape[1] + numbers)[:, None]
        if numbers:
            # The entry of an undeclared value (-1) is in the last number's place, which is written afterwards.
            part.reshape(-1)[entries] = 1.0
            part[:, :numbers] = split.numeric.take(indices, axis=0)
        else:
            part.reshape(-1)[entries[split.codes.take(indices, axis=0) >= 0]] = 1.0
        start += len(indices)
    return {"features": torch.from_numpy(features)}
