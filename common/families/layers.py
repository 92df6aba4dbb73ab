"""The layers that all tabular families are made of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class HiddenLayers(nn.Module):
    """Linear-ReLU-Dropout, once per width: (B, input_size) to (B, widths[-1])."""

    def __init__(self, input_size: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        sizes = [input_size, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Hidden activations."""
        for layer in self.layers:
            values = self.dropout(torch.relu(layer(values)))
        return values


class Tower(HiddenLayers):
    """Hidden layers and an output layer: (B, input_size) to (B, outputs), or (B,) for a score."""

    def __init__(
        self, input_size: int, widths: Sequence[int], dropout: float, outputs: int, *, score: bool = False
    ) -> None:
        super().__init__(input_size, widths, dropout)
        self.output = nn.Linear([input_size, *widths][-1], outputs)
        self._score = score

    def forward(self, values: Tensor) -> Tensor:
        """Logits (B, outputs), or scores (B,)."""
        outputs: Tensor = self.output(super().forward(values))
        return outputs.squeeze(-1) if self._score else outputs
