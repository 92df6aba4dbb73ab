"""From token vectors to one vector per text. B texts, L tokens, H hidden size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["cls", "mean", "max"]


def pool(tokens: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Pool over the real tokens of each text; padding never counts.

    Args:
        tokens: (B, L, H) float.
        mask: (B, L), nonzero at real tokens; every text has at least one.
        how: `cls` takes the first token, `mean` and `max` go over all real ones.

    Returns:
        (B, H).
    """
    match how:
        case "cls":
            return tokens[:, 0]
        case "mean":
            weights = mask.to(tokens.dtype).unsqueeze(-1)
            return (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        case "max":
            lowest = torch.finfo(tokens.dtype).min
            return tokens.masked_fill(mask.unsqueeze(-1) == 0, lowest).amax(dim=1)
