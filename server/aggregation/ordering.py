"""What every aggregator asks of the updates of a slot, and the order in which it takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from common.errors import PlanError
from common.torch_tensors import dtype_name
from server.aggregation.base import SlotUpdate


def ordered(value: Tensor, updates: Sequence[SlotUpdate]) -> list[SlotUpdate]:
    """The updates in the order of client ids.

    Raises:
        PlanError: no update, a delta of another shape, or a slot that can't be averaged.
    """
    if not updates:
        raise PlanError("there is no update to aggregate")
    if not value.is_floating_point():
        raise PlanError(f"a slot of {dtype_name(value)} can't be averaged")
    for update in updates:
        if update.delta.shape != tuple(value.shape):
            raise PlanError(f"{update.client_id}: a delta of {update.delta.shape} for a slot of {tuple(value.shape)}")
    return sorted(updates, key=lambda update: update.client_id)


def ordered_with_shares(value: Tensor, updates: Sequence[SlotUpdate]) -> list[SlotUpdate]:
    """`ordered` for a robust aggregator, to which weights are shares of a whole.

    Raises:
        PlanError: as `ordered`, or a weight that is not positive and finite.
    """
    for update in updates:
        if not 0 < update.weight < math.inf:
            raise PlanError(f"{update.client_id}: a weight of {update.weight} is no share of a centre")
    return ordered(value, updates)


def total_weight(updates: Sequence[SlotUpdate]) -> float:
    """By what a slot moves along the centre of its deltas: the sum of the weights, rounded once."""
    return math.fsum(update.weight for update in updates)
