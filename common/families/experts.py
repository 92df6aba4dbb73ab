"""Experts: networks of equal widths over one input, a parameter each and computed together.

B rows, F inputs, E experts, H units of an expert's layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from common.families.gates import Gate


class Expert(nn.Module):
    """The parameters of one expert, ``layers.<n>.weight`` and ``.bias``; `read` computes with them.

    Args:
        input_size: F.
        widths: units of each layer.
    """

    def __init__(self, input_size: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([input_size, *widths]))


class ExpertStack(nn.ModuleList):
    """E experts of equal widths, ``<n>.layers.<m>.weight`` and ``.bias``.

    Every expert keeps parameters of its own, so that each can be sent, averaged and frozen alone; a pass puts them
    side by side, which costs a copy of the weights, a small part of the products with a batch.

    Args:
        number: E.
        input_size: F.
        widths: units of each layer of each expert.
    """

    def __init__(self, number: int, input_size: int, widths: Sequence[int]) -> None:
        super().__init__(Expert(input_size, widths) for _ in range(number))
        self.widths = tuple(widths)

    def layer(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """Weights (H, inputs) and biases (H,) of one layer of each expert."""
        weights, biases = [], []
        for expert in self:
            layer = cast("Expert", expert).layers[index]
            weights.append(cast("Tensor", layer.weight))
            biases.append(cast("Tensor", layer.bias))
        return weights, biases

    def deeper(self, hidden: Tensor, dropout: nn.Module) -> Tensor:
        """The layers after the first.

        Args:
            hidden: (E * H, B), what the first gives.
            dropout: applied after every layer.

        Returns:
            (B, E, H) of the last layer.
        """
        values = hidden.view(len(self), self.widths[0], hidden.shape[-1])
        if len(self.widths) == 1:
            return values.permute(2, 0, 1)
        values = values.transpose(-2, -1)
        for index in range(1, len(self.widths)):
            weights, biases = self.layer(index)
            products = torch.baddbmm(torch.stack(biases).unsqueeze(1), values, torch.stack(weights).transpose(1, 2))
            values = dropout(torch.relu(products))
        return values.transpose(-3, -2)


def read(
    values: Tensor, stacks: Sequence[ExpertStack], gates: Sequence[Gate], dropout: nn.Module
) -> tuple[list[Tensor], list[Tensor]]:
    """What experts and gates make of one input: one product for the first layers of all of them.

    Args:
        values: (B, F), read by all.
        stacks: of experts.
        gates: over whichever experts.
        dropout: applied after every layer of the experts.

    Returns:
        for each stack (B, E, H) of the last layer, and for each gate the products that `Gate.route` wants.
    """
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for stack in stacks:
        of_stack = stack.layer(0)
        weights += of_stack[0]
        biases += of_stack[1]
    sizes = [len(stack) * stack.widths[0] for stack in stacks]
    for gate in gates:
        of_gate = gate.products()
        weights += of_gate[0]
        biases += of_gate[1]
    widths = [sum(sizes), *(gate.width for gate in gates)]
    # Rows are the last dimension in memory, so that what belongs to one expert or gate is one piece of it.
    all_products = torch.addmm(torch.cat(biases).unsqueeze(1), torch.cat(weights), values.t())
    first, *products = torch.split(all_products, widths)
    hidden = _split(dropout(torch.relu(first)), sizes) if stacks else ()
    outputs = [stack.deeper(part, dropout) for stack, part in zip(stacks, hidden, strict=True)]
    return outputs, [product.t() for product in products]


def mixed(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The weighted sum of experts.

    Args:
        weights: (B, E), of the experts in the order in which `outputs` has them.
        outputs: (B, E_i, H) of each stack, E in all.

    Returns:
        (B, H).
    """
    parts = [part.t() for part in _split(weights.t(), [output.shape[-2] for output in outputs])]
    # A sum of products is two to three times as fast as many matrix products of one row each; in the layout of `read`.
    sums = [
        (part.t().unsqueeze(1) * output.permute(1, 2, 0)).sum(0) for part, output in zip(parts, outputs, strict=True)
    ]
    return (sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)).t()


def _split(values: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Parts along the first dimension; a single one is the tensor itself, whose gradient then needs no copy."""
    return [values] if len(sizes) == 1 else torch.split(values, list(sizes))
