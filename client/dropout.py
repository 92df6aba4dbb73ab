"""Dropout on the CPU with masks from a fast stream.

torch draws one Bernoulli number per element, on one thread, in about 6 ns; for a small encoder that is a tenth of a
step. Here an element takes 16 bits of numpy's SFC64 generator, about 0.4 ns, and is dropped where they are below
``k = round(65536 * p)``. The probability is so ``k / 65536``, off by at most 2^-17, and what is kept is divided by
exactly one minus that, so expectations are kept exactly. Which numbers are drawn follows from the seed alone.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS: Final = 1 << 16


class DropoutStream:
    """Random bits that all dropout modules of a model share, in the order of their use."""

    def __init__(self) -> None:
        self._bits = np.random.SFC64(0)

    def restart(self, seed: int) -> None:
        """Start over at a seed."""
        self._bits = np.random.SFC64(seed)

    def draw(self, shape: torch.Size) -> Tensor:
        """Uniform int16 of this shape."""
        count = math.prod(shape)
        words: np.ndarray = np.asarray(self._bits.random_raw(-(-count // 4)))
        return torch.from_numpy(words.view(np.int16)[:count]).view(shape)


class StreamDropout(nn.Dropout):
    """`nn.Dropout` that draws from a stream where it runs on the CPU; elsewhere and in evaluation it is `nn.Dropout`.

    Args:
        p: probability of dropping an element.
        stream: where random bits come from.
    """

    def __init__(self, p: float, stream: DropoutStream) -> None:
        super().__init__(p)
        self._stream = stream
        self._level = min(round(p * _LEVELS), _LEVELS)
        self._scale = _LEVELS / max(1, _LEVELS - self._level)
        self._known: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def forward(self, input: Tensor) -> Tensor:  # as in nn.Dropout
        """The input with some elements zero and the others scaled up."""
        elsewhere = input.device.type != "cpu" or torch.compiler.is_compiling()
        if elsewhere or not self.training:
            return super().forward(input)
        if self._level in (0, _LEVELS):  # so near to 0 or 1 that none or all are dropped
            return input if self._level == 0 else input * 0.0
        kept = self._stream.draw(input.shape) >= self._level - _LEVELS // 2
        dropped, scaled = self._factors(input.dtype)
        return input * torch.where(kept, scaled, dropped)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What dropped and kept elements are multiplied with, scalars."""
        known = self._known.get(dtype)
        if known is None:
            known = self._known[dtype] = (torch.zeros((), dtype=dtype), torch.full((), self._scale, dtype=dtype))
        return known


def use_stream(module: nn.Module, stream: DropoutStream) -> None:
    """Put a `StreamDropout` in the place of each plain `nn.Dropout` in a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and not child.inplace:
                setattr(parent, name, StreamDropout(child.p, stream).train(child.training))
