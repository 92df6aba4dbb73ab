"""From token vectors to one vector per text. B texts, L tokens, H hidden size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["cls", "mean", "max", "first_last"]


def pool(tokens: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Pool over the real tokens of each text; padding never counts.

    Args:
        tokens: (B, L, H) float; for `first_last` what `first_last_average` gives.
        mask: (B, L), nonzero at real tokens; every text has at least one.
        how: `cls` takes the first token, `mean`, `max` and `first_last` (a mean) go over all real ones.

    Returns:
        (B, H).
    """
    match how:
        case "cls":
            return tokens[:, 0]
        case "mean" | "first_last":
            weights = mask.to(tokens.dtype).unsqueeze(-1)
            return (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        case "max":
            lowest = torch.finfo(tokens.dtype).min
            return tokens.masked_fill(mask.unsqueeze(-1) == 0, lowest).amax(dim=1)


def first_last_average(hidden_states: Sequence[Tensor]) -> Tensor:
    """Token vectors whose mean is the `first-last-avg` of Su et al. 2021 (arXiv 2103.15316).

    "First" is the output of the first transformer layer, as in the paper's code, not that of the embeddings, which
    some later work takes. Averaging layers before or after the mean over tokens is the same.

    Args:
        hidden_states: (B, L, H) each: the embeddings' output, then every layer's.

    Returns:
        (B, L, H).
    """
    return (hidden_states[1] + hidden_states[-1]) / 2
