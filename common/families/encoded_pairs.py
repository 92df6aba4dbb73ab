"""Tokenised pairs of texts whose two texts go through the encoder one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from common.families.encoded_text import EncodedText


@dataclass(frozen=True)
class EncodedPairs:
    """N pairs of one task.

    Attributes:
        texts: 2N rows; rows 2i and 2i + 1 are the texts of pair i, each with the pair's label and weight.
    """

    texts: EncodedText

    @property
    def labels(self) -> Tensor:
        """(N,) int64 or float32."""
        return self.texts.labels[::2]

    @property
    def weights(self) -> Tensor | None:
        """(N,) float32, or None."""
        return None if self.texts.weights is None else self.texts.weights[::2]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, twice the tokens of the longer text: that is what is computed, as both are padded to one length.

        Their sum would put a long and a short text beside two of middling length, which a batch pads to the long one.
        """
        lengths: np.ndarray = 2 * self.texts.lengths.reshape(-1, 2).max(axis=1)
        return lengths

    def __len__(self) -> int:
        return len(self.texts) // 2

    def collate(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Model inputs for these pairs, all int64 of shape (B, 2, L), L the longest of their texts.

        Args:
            indices: (B,) pair numbers, at least one.
        """
        first = 2 * np.asarray(indices)
        rows = np.stack([first, first + 1], axis=1).reshape(-1)
        return {name: block.view(len(first), 2, -1) for name, block in self.texts.collate(rows).items()}
