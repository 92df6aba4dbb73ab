"""The two forms of a delta: every element, or only the rows that changed.

Both read through a callable, so that the elements may lie in memory or in a file (`server.spool`).

Sums are made by numpy and not by torch: torch's threads meet at a barrier after each operation, which on a busy
machine costs milliseconds a time; and a product rounded before it is added gives the same bits on every
processor, where a fused multiply-add would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from common.tensors import Array
from server.aggregation.scratch import scratch_doubles

#: ``(first, last) -> elements or rows first..last-1``; the result is good until the next call.
Reader = Callable[[int, int], Tensor]


class DenseDelta:
    """A delta that holds every element.

    Args:
        shape: of the tensor.
        reader: gives a flat range of elements.
    """

    def __init__(self, shape: tuple[int, ...], reader: Reader) -> None:
        self.shape = shape
        self._reader = reader

    @classmethod
    def of(cls, tensor: Tensor) -> DenseDelta:
        """A delta in memory."""
        flat = tensor.detach().reshape(-1)
        return cls(tuple(tensor.shape), lambda first, last: flat[first:last])

    def add_to(self, accumulator: Tensor, start: int, weight: float) -> None:
        """See `server.aggregation.base.Delta`."""
        total = accumulator.numpy()
        total += _weighted(self._reader(start, start + len(accumulator)), weight)

    def read(self, start: int, out: Tensor) -> None:
        """See `server.aggregation.base.Delta`."""
        out.copy_(self._reader(start, start + len(out)))


class RowsDelta:
    """A delta that is zero outside the rows it holds.

    Args:
        shape: of the dense tensor, 2 dimensions or more.
        indices: int64, strictly increasing: the rows held.
        reader: gives rows by their position in `indices`, shape ``(n, elements of a row)``.
    """

    def __init__(self, shape: tuple[int, ...], indices: Tensor, reader: Reader) -> None:
        self.shape = shape
        self._indices = indices
        self._reader = reader
        self._width = math.prod(shape[1:])

    @classmethod
    def of(cls, shape: tuple[int, ...], indices: Tensor, values: Tensor) -> RowsDelta:
        """A delta in memory; `values` has shape ``(len(indices), *shape[1:])``."""
        rows = values.detach().reshape(len(indices), math.prod(shape[1:]))
        return cls(shape, indices.to(torch.int64), lambda first, last: rows[first:last])

    def add_to(self, accumulator: Tensor, start: int, weight: float) -> None:
        """See `server.aggregation.base.Delta`; touches the rows held only."""
        for target, index, rows in self._pieces(accumulator, start):
            # No index comes twice.
            target.numpy()[index.numpy()] += _weighted(rows, weight)

    def read(self, start: int, out: Tensor) -> None:
        """See `server.aggregation.base.Delta`."""
        out.zero_()
        for target, index, rows in self._pieces(out, start):
            target.index_copy_(0, index, rows.to(target.dtype))

    def _pieces(self, block: Tensor, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Parts of `block` that are rectangles of the matrix, with the rows held that fall in each."""
        for first, last, left, right in _rectangles(start, start + len(block), self._width):
            begin, end = torch.searchsorted(self._indices, torch.tensor([first, last])).tolist()
            if begin == end:
                continue
            offset = first * self._width + left - start
            target = block[offset : offset + (last - first) * (right - left)].view(last - first, right - left)
            yield target, self._indices[begin:end] - first, self._reader(begin, end)[:, left:right]


def _weighted(elements: Tensor, weight: float) -> Array:
    """``weight * elements`` in float64, in this thread's scratch memory."""
    plain = elements.to(torch.float32) if elements.dtype is torch.bfloat16 else elements
    product = scratch_doubles("product", elements.numel()).reshape(tuple(elements.shape))
    np.copyto(product, plain.numpy())
    product *= weight
    return product


def _rectangles(start: int, stop: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a flat range of a matrix into (first row, last row, left, right): at most two cut rows and whole ones."""
    if start >= stop:
        return
    (first, left), (last, right) = divmod(start, width), divmod(stop, width)
    if first == last:
        yield first, first + 1, left, right
        return
    if left:
        yield first, first + 1, left, width
        first += 1
    if last > first:
        yield first, last, 0, width
    if right:
        yield last, last + 1, 0, right
