"""The deltas of several clients side by side: one row each, for a block of the slot's elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from common.tensors import Array
from server.aggregation.base import SlotUpdate
from server.aggregation.scratch import scratch_doubles

#: Most elements of a row: what is made of ten rows (1.3 MiB) stays near the processor, and a row is not long enough
#: for torch to call its threads.
WIDEST: Final = 2**14
#: Elements of all rows together: 16 MiB of float64 per thread, however many clients there are.
ELEMENTS: Final = 2**21
_NARROWEST: Final = 16


def row_width(num_updates: int) -> int:
    """Elements of a block: depends on the number of updates alone, so that sums over blocks have the same bits."""
    return max(_NARROWEST, min(WIDEST, ELEMENTS // num_updates))


def read_rows(updates: Sequence[SlotUpdate], start: int, stop: int) -> Array:
    """float64, shape ``(len(updates), stop - start)``, in this thread's scratch memory."""
    rows = scratch_doubles("rows", len(updates) * (stop - start)).reshape(len(updates), stop - start)
    for row, update in zip(rows, updates, strict=True):
        update.delta.read(start, torch.from_numpy(row))
    return rows
