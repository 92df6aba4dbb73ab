"""The default aggregator: a slot moves by the weighted sum of its deltas."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from torch import Tensor

from common.errors import PlanError
from common.tensors import NUMPY_DTYPES
from common.torch_tensors import dtype_name, tensor_of
from server.aggregation.base import SlotUpdate
from server.aggregation.scratch import scratch_doubles

#: Elements summed at a time by one thread: few enough that the float64 sum (1 MiB) and the piece of a delta
#: stay near the processor, enough that starting an operation costs little.
BLOCK: Final = 2**17
_MOST_THREADS: Final = 4


class WeightedSum:
    """``value + sum_k weight_k * delta_k``.

    With ``weight_k = omega_t * n_k / N_t`` this is federated averaging per task (McMahan et al., 2017,
    arXiv:1602.05629) under task weights omega. Each product and sum is a float64 one, in the order of client
    ids, and the result is rounded once to the slot's type: the same bits in whatever order updates
    arrived and however many threads work. Memory: the new tensor and two blocks per thread.

    Args:
        threads: how many blocks are summed at a time; the processors of this process, at most 4, by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or min(_MOST_THREADS, _processors())
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="aggregate")

    @torch.no_grad()
    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`."""
        ordered = _checked(value, updates)
        result = _empty_like(value)
        before, after = value.reshape(-1), result.view(-1)
        starts = range(0, value.numel(), BLOCK)
        if len(starts) <= 1 or self._threads == 1:
            for start in starts:
                _sum_block(before, after, start, ordered)
        else:
            # Blocks are handed out as threads get free: one that the system holds up delays the others little.
            list(self._pool.map(lambda start: _sum_block(before, after, start, ordered), starts))
        return result


def _processors() -> int:
    """Those this process may use; not every system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked(value: Tensor, updates: Sequence[SlotUpdate]) -> list[SlotUpdate]:
    """The updates in the order of summation."""
    if not updates:
        raise PlanError("there is no update to aggregate")
    if not value.is_floating_point():
        raise PlanError(f"a slot of {dtype_name(value)} can't be averaged")
    for update in updates:
        if update.delta.shape != tuple(value.shape):
            raise PlanError(f"{update.client_id}: a delta of {update.delta.shape} for a slot of {tuple(value.shape)}")
    return sorted(updates, key=lambda update: update.client_id)


def _sum_block(before: Tensor, after: Tensor, start: int, updates: Sequence[SlotUpdate]) -> None:
    stop = min(start + BLOCK, len(before))
    total = torch.from_numpy(scratch_doubles("total", stop - start))
    _cast(before[start:stop], total)
    for update in updates:
        update.delta.add_to(total, start, update.weight)
    _cast(total, after[start:stop])


def _cast(source: Tensor, target: Tensor) -> None:
    """Copy with a change of type; bfloat16 is torch's alone."""
    if torch.bfloat16 in (source.dtype, target.dtype):
        target.copy_(source)
        return
    with np.errstate(over="ignore"):  # too large for the slot's type becomes infinity, as in torch
        np.copyto(target.numpy(), source.numpy(), casting="same_kind")


def _empty_like(value: Tensor) -> Tensor:
    """Memory from numpy, which asks the system for huge pages: first use of a large tensor costs a third."""
    name = dtype_name(value)
    return tensor_of(np.empty(tuple(value.shape), NUMPY_DTYPES[name]), name)
