"""What the coordinate-wise methods share: read block after block, find each element's centre, move by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from common.tensors import Array
from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool, cast, empty_like
from server.aggregation.ordering import total_weight
from server.aggregation.rows import read_rows, row_width
from server.aggregation.scratch import scratch_doubles

#: Deltas, float64 of shape ``(clients, n)``, to the centre of each column, shape ``(n,)``; 0 for a column of zeros.
Centre = Callable[[Array], Array]


@torch.no_grad()
def move_by_centres(value: Tensor, updates: Sequence[SlotUpdate], centre: Centre, pool: BlockPool) -> Tensor:
    """``value + (sum of the weights) * centre``, element by element.

    Memory: the new tensor, and a few blocks of 16 MiB per thread.

    Args:
        value: the slot.
        updates: in the order of client ids.
        centre: see `Centre`; what it gives for a column may not depend on the other columns.
        pool: the threads that work.
    """
    result = empty_like(value)
    before, after = value.reshape(-1), result.view(-1)
    step = total_weight(updates)

    def move_block(start: int, stop: int) -> None:
        total = scratch_doubles("total", stop - start)
        cast(before[start:stop], torch.from_numpy(total))
        rows = read_rows(updates, start, stop)
        # Most rows of an embedding table no batch has touched: there is nothing to sort.
        moved = np.flatnonzero(rows.any(axis=0))
        with np.errstate(over="ignore", invalid="ignore"):  # float64 slots: the round is checked when it is whole
            if len(moved) == len(total):
                total += step * centre(rows)
            elif len(moved):
                total[moved] += step * centre(rows[:, moved])
        cast(torch.from_numpy(total), after[start:stop])

    pool.run(move_block, value.numel(), row_width(len(updates)))
    return result
