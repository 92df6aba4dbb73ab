"""Lengths of deltas and distances between them, over all elements of a slot; data is read once.

Sums are numpy's pairwise ones over rows of a fixed width and then in the order of the blocks: no BLAS, whose sums
depend on threads and processor. A delta of a float64 slot that is longer than about 1e154 has an infinite square:
it counts as infinitely far away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch

from common.tensors import Array
from server.aggregation.base import Delta, SlotUpdate
from server.aggregation.blocks import BlockPool
from server.aggregation.rows import read_rows, row_width
from server.aggregation.scratch import scratch_doubles

#: Elements squared at a time.
BLOCK: Final = 2**15


def squared_norm(delta: Delta, count: int, pool: BlockPool) -> float:
    """The sum of the squares of a delta's `count` elements; the same bits for rows as for the dense delta."""

    def square_block(start: int, stop: int) -> float:
        block = scratch_doubles("rows", stop - start)
        delta.read(start, torch.from_numpy(block))
        with np.errstate(over="ignore"):
            np.multiply(block, block, out=block)
            return float(np.add.reduce(block))

    return sum(pool.each(square_block, count, BLOCK), start=0.0)


def squared_distances(updates: Sequence[SlotUpdate], count: int, pool: BlockPool) -> Array:
    """The squared distance between every two deltas: float64, shape ``(k, k)``, zeros in the diagonal.

    From the differences, so that deltas which are close to each other and far from zero keep their distance. Takes
    ``k * (k - 1) / 2`` passes over a block in memory.
    """

    def measure_block(start: int, stop: int) -> Array:
        rows = read_rows(updates, start, stop)
        found = np.zeros((len(rows), len(rows)))
        with np.errstate(over="ignore"):
            for index in range(len(rows) - 1):
                others = _table("table", rows[index + 1 :])
                np.subtract(rows[index + 1 :], rows[index], out=others)
                np.multiply(others, others, out=others)
                found[index, index + 1 :] = np.add.reduce(others, axis=1)
        return found

    upper = _sum_of_blocks(updates, pool.each(measure_block, count, row_width(len(updates))))
    return upper + upper.T


def gram_matrix(updates: Sequence[SlotUpdate], count: int, pool: BlockPool) -> Array:
    """The inner product of every two deltas: float64, shape ``(k, k)``.

    Takes ``k * (k + 1) / 2`` passes over a block in memory.
    """

    def multiply_block(start: int, stop: int) -> Array:
        rows = read_rows(updates, start, stop)
        found = np.zeros((len(rows), len(rows)))
        with np.errstate(over="ignore", invalid="ignore"):
            for index in range(len(rows)):
                products = _table("table", rows[index:])
                np.multiply(rows[index:], rows[index], out=products)
                found[index, index:] = np.add.reduce(products, axis=1)
        return found

    upper = _sum_of_blocks(updates, pool.each(multiply_block, count, row_width(len(updates))))
    return upper + np.triu(upper, 1).T


def _table(purpose: str, like: Array) -> Array:
    return scratch_doubles(purpose, like.size).reshape(like.shape)


def _sum_of_blocks(updates: Sequence[SlotUpdate], blocks: Iterator[Array]) -> Array:
    total = np.zeros((len(updates), len(updates)))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            total += block
    return total
