"""A slot is worked on block after block, several at a time; the result never depends on how many."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.tensors import NUMPY_DTYPES
from common.torch_tensors import dtype_name, tensor_of

_MOST_THREADS: Final = 4
Result = TypeVar("Result")


class BlockPool:
    """Threads that the aggregators of a run share.

    Args:
        threads: how many blocks are worked on at a time; the processors of this process, at most 4, by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or min(_MOST_THREADS, _processors())
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="aggregate")

    def each(self, work: Callable[[int, int], Result], count: int, block: int) -> Iterator[Result]:
        """``work(start, stop)`` for the blocks of ``range(count)``: the results in the order of the blocks.

        An exception of `work` is raised in its block's turn, after no other thread works any more: whoever
        catches it may close the files that were read.
        """
        starts = range(0, count, block)
        if len(starts) <= 1 or self._threads == 1:
            for start in starts:
                yield work(start, min(start + block, count))
            return
        # Blocks are handed out as threads get free: one that the system holds up delays the others little.
        waiting = deque(self._pool.submit(work, start, min(start + block, count)) for start in starts)
        try:
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def run(self, work: Callable[[int, int], None], count: int, block: int) -> None:
        """`each` where the work leaves its result in place."""
        for _ in self.each(work, count, block):
            pass


def cast(source: Tensor, target: Tensor) -> None:
    """Copy with a change of type; bfloat16 is torch's alone."""
    if torch.bfloat16 in (source.dtype, target.dtype):
        target.copy_(source)
        return
    with np.errstate(over="ignore"):  # too large for the slot's type becomes infinity, as in torch
        np.copyto(target.numpy(), source.numpy(), casting="same_kind")


def empty_like(value: Tensor) -> Tensor:
    """Memory from numpy, which asks the system for huge pages: first use of a large tensor costs a third."""
    name = dtype_name(value)
    return tensor_of(np.empty(tuple(value.shape), NUMPY_DTYPES[name]), name)


def _processors() -> int:
    """Those this process may use; not every system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
