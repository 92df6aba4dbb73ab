"""The layers that all tabular families are made of."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.seeds import derive_seed


class HiddenLayers(nn.Module):
    """Linear-ReLU-Dropout, once per width: (B, input_size) to (B, widths[-1])."""

    def __init__(self, input_size: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        sizes = [input_size, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def step(self, number: int, values: Tensor, added: Tensor | None = None) -> Tensor:
        """The activations of one layer, counted from 0.

        Args:
            number: which.
            values: the activations below it.
            added: joins the layer's own sum before the ReLU, of its output's shape.
        """
        summed = self.layers[number](values)
        activations: Tensor = self.dropout(torch.relu(summed if added is None else summed + added))
        return activations

    def forward(self, values: Tensor) -> Tensor:
        """Hidden activations."""
        for number in range(len(self.layers)):
            values = self.step(number, values)
        return values


class Tower(HiddenLayers):
    """Hidden layers and an output layer: (B, input_size) to (B, outputs), or (B,) for a score."""

    def __init__(
        self, input_size: int, widths: Sequence[int], dropout: float, outputs: int, *, score: bool = False
    ) -> None:
        super().__init__(input_size, widths, dropout)
        self.output = nn.Linear([input_size, *widths][-1], outputs)
        self._score = score

    def forward(self, values: Tensor, added: Tensor | None = None) -> Tensor:
        """Logits (B, outputs), or scores (B,).

        Args:
            values: (B, input_size).
            added: joins the sum of the first layer, be it hidden or the output's.
        """
        for number in range(len(self.layers)):
            values, added = self.step(number, values, added), None
        outputs: Tensor = self.output(values)
        if added is not None:
            outputs = outputs + added
        return outputs.squeeze(-1) if self._score else outputs


def rows_of(values: Tensor, rows: slice) -> Tensor:
    """Some rows of (B, ...); all of them are the tensor itself, whose gradient then needs no copy."""
    return values if rows.indices(len(values)) == (0, len(values), 1) else values[rows]


def first_linear_value(name: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensor:
    """The first value of a linear layer's tensor as torch draws it, uniform in +-1/sqrt(inputs of the layer).

    Drawn from (seed, name) alone.

    Args:
        name: ends in ``weight`` or ``bias``.
        shapes: name to shape, of the layer's weights at least.
        seed: the run's.
    """
    weight = name.removesuffix("bias") + "weight" if name.endswith("bias") else name
    bound: float = shapes[weight][-1] ** -0.5
    generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
    return torch.empty(shapes[name]).uniform_(-bound, bound, generator=generator)
