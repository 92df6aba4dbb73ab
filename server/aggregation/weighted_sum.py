"""The default aggregator: a slot moves by the weighted sum of its deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from common.errors import PlanError
from common.tensors import NUMPY_DTYPES
from common.torch_tensors import dtype_name, tensor_of
from server.aggregation.base import SlotUpdate

#: Elements summed at a time. The float64 block (4 MiB) and the piece of each delta stay in the cache,
#: yet each torch call works long enough to hide what it costs to start it on all cores.
BLOCK: Final = 2**19


class WeightedSum:
    """``value + sum_k weight_k * delta_k``.

    With ``weight_k = omega_t * n_k / N_t`` this is federated averaging per task (McMahan et al., 2017,
    arXiv:1602.05629) under task weights omega. The sum is kept in float64, in the order of client ids, and
    rounded once to the slot's type, so the result is the same bits in whatever order updates arrived
    and however many threads work. Memory: the new tensor and one block.
    """

    @torch.no_grad()
    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`."""
        if not updates:
            raise PlanError("there is no update to aggregate")
        if not value.is_floating_point():
            raise PlanError(f"a slot of {dtype_name(value)} can't be averaged")
        ordered = sorted(updates, key=lambda update: update.client_id)
        for update in ordered:
            if update.delta.shape != tuple(value.shape):
                raise PlanError(f"{update.client_id}: a delta of {update.delta.shape} for a slot of {value.shape}")
        result = _empty_like(value)
        before, after = value.reshape(-1), result.view(-1)
        block = torch.empty(min(BLOCK, value.numel()), dtype=torch.float64)
        for start in range(0, value.numel(), BLOCK):
            stop = min(start + BLOCK, value.numel())
            accumulator = block[: stop - start]
            accumulator.copy_(before[start:stop])
            for update in ordered:
                update.delta.add_to(accumulator, start, update.weight)
            after[start:stop].copy_(accumulator)
        return result


def _empty_like(value: Tensor) -> Tensor:
    """Memory from numpy, which asks the system for huge pages: first use of a large tensor costs a quarter."""
    name = dtype_name(value)
    return tensor_of(np.empty(tuple(value.shape), NUMPY_DTYPES[name]), name)
