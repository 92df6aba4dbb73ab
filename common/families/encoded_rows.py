"""Tabular rows of one task as numbers: categories stay codes until a batch is put together."""

from __future__ import annotations

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
        codes = self.codes[indices]
        one_hot = np.zeros((len(codes), self.width), dtype=np.float32)
        rows, columns = np.nonzero(codes >= 0)
        one_hot[rows, codes[rows, columns]] = 1.0
        return {"features": torch.from_numpy(np.concatenate([self.numeric[indices], one_hot], axis=1))}
