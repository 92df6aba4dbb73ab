"""Tokenised rows of one task: flat arrays, padded only when a batch is put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.tasks import TaskSpec


@dataclass(frozen=True)
class EncodedText:
    """Token ids of N texts (or pairs), one after the other: 4 bytes a token, 5 with type ids.

    Attributes:
        ids: (T,) int32, all tokens of all rows.
        type_ids: (T,) uint8, 1 in the second text of a pair; absent where the encoder takes none.
        offsets: (N + 1,) int64; row i is ``ids[offsets[i]:offsets[i + 1]]``.
        labels: (N,) int64 or float32.
        pad_id: token id that fills up shorter rows.
        weights: (N,) float32, what each row weighs in the loss; None where all weigh 1.
    """

    ids: np.ndarray
    type_ids: np.ndarray | None
    offsets: np.ndarray
    labels: Tensor
    pad_id: int
    weights: Tensor | None = None

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens per row."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def collate(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Model inputs for these rows, all int64 of shape (B, L), L the longest of them.

        Args:
            indices: (B,) row numbers, at least one.
        """
        real, sources = self._places(indices)

        def padded(flat: np.ndarray, fill: int) -> Tensor:
            block = np.full(real.shape, fill, dtype=np.int64)
            block[real] = flat[sources]
            return torch.from_numpy(block)

        batch = {"input_ids": padded(self.ids, self.pad_id), "attention_mask": torch.from_numpy(real.astype(np.int64))}
        if self.type_ids is not None:
            batch["token_type_ids"] = padded(self.type_ids, 0)
        return batch

    def tokens(self, indices: np.ndarray) -> np.ndarray:
        """(T,) int32, the ids of these rows one after the other, without padding."""
        found: np.ndarray = self.ids[self._places(indices)[1]]
        return found

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where a padded block of these rows holds tokens, (B, L) bool, and their places in `ids`, (T,)."""
        starts = self.offsets[indices]
        lengths = self.offsets[np.asarray(indices) + 1] - starts
        positions = np.arange(int(lengths.max()))
        real = positions < lengths[:, None]
        return real, (starts[:, None] + positions)[real]


def joinable(splits: Iterable[object]) -> bool:
    """Whether rows of these splits can stand in one batch, as `collate_parts` makes it: all texts, read alike."""
    known = list(splits)
    texts = [split for split in known if isinstance(split, EncodedText)]
    return len(texts) == len(known) and len({(text.pad_id, text.type_ids is None) for text in texts}) <= 1


def collate_parts(parts: Sequence[tuple[EncodedText, np.ndarray]]) -> dict[str, Tensor]:
    """Model inputs for rows of several splits, one split's after the other's, padded to the longest of all.

    Args:
        parts: at least one split with the numbers of its rows, at least one each; `joinable`.

    Returns:
        As `EncodedText.collate`: int64 of shape (B, L), B the rows of all parts.

    Raises:
        ValueError: the splits are not joinable.
    """
    if not joinable(split for split, _ in parts):
        raise ValueError("rows of splits with different inputs or padding can't stand in one batch")
    batches = [split.collate(indices) for split, indices in parts]
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    fills = {"input_ids": parts[0][0].pad_id}
    return {
        name: torch.cat(
            [functional.pad(b[name], (0, longest - b[name].shape[1]), value=fills.get(name, 0)) for b in batches]
        )
        for name in batches[0]
    }


def weights_of(examples: Examples) -> Tensor | None:
    """(N,) float32, in memory of their own; None where all rows weigh 1."""
    return None if examples.weights is None else torch.from_numpy(examples.weights.copy())


def labels_of(task: TaskSpec, examples: Examples) -> Tensor:
    """(N,) int64 class ids, or float32 scores, in memory of their own."""
    dtype = np.float32 if task.kind == "regression" else np.int64
    return torch.from_numpy(np.array(examples.labels, dtype=dtype))
