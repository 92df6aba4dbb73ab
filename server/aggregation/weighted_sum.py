"""The default aggregator: a slot moves by the weighted sum of its deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from server.aggregation.base import SlotUpdate
from server.aggregation.blocks import BlockPool, cast, empty_like
from server.aggregation.ordering import ordered
from server.aggregation.scratch import scratch_doubles

#: Elements summed at a time by one thread: few enough that the float64 sum (1 MiB) and the piece of a delta
#: stay near the processor, enough that starting an operation costs little.
BLOCK: Final = 2**17


class WeightedSum:
    """``value + sum_k weight_k * delta_k``.

    With ``weight_k = omega_t * n_k / N_t`` this is federated averaging per task (McMahan et al., 2017,
    arXiv:1602.05629) under task weights omega. Each product and sum is a float64 one, in the order of client
    ids, and the result is rounded once to the slot's type: the same bits in whatever order updates
    arrived and however many threads work. Memory: the new tensor and two blocks per thread.

    Args:
        pool: the threads that work; a pool of its own by default.
    """

    def __init__(self, pool: BlockPool | None = None) -> None:
        self._pool = pool or BlockPool()

    @torch.no_grad()
    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`."""
        in_order = ordered(value, updates)
        result = empty_like(value)
        before, after = value.reshape(-1), result.view(-1)

        def sum_block(start: int, stop: int) -> None:
            total = torch.from_numpy(scratch_doubles("total", stop - start))
            cast(before[start:stop], total)
            for update in in_order:
                update.delta.add_to(total, start, update.weight)
            cast(total, after[start:stop])

        self._pool.run(sum_block, value.numel(), BLOCK)
        return result
