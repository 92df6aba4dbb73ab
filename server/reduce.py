"""One round's updates become the next version: slot by slot, each client's delta by its weight."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from torch import Tensor

from common.errors import FedmtlError
from common.failpoints import failpoint
from common.plan import SharingPlan, Slot
from common.tensors import all_finite
from common.torch_tensors import array_of, dtype_name
from server.aggregation import AggregatorChoice, SlotUpdate
from server.correction import Reweigh
from server.coupling import Couple
from server.model_state import ModelState
from server.round import Examples
from server.spool import SpooledUpdate
from server.weights import TaskStep, TaskWeights, slot_weights

#: Elements checked at a time, so that the answers take little memory.
_CHECKED: Final = 2**20


class ReductionCancelled(FedmtlError):
    """The server stops; the round's updates stay in the spool, and the fold is made again from them."""


class UnsoundModel(FedmtlError):
    """The next version would hold infinite values or NaN; the version stays what it was."""


def reduce_round(
    model: ModelState,
    updates: Sequence[SpooledUpdate],
    contributions: Mapping[str, Examples],
    task_weights: TaskWeights,
    aggregators: AggregatorChoice,
    task_step: TaskStep = "mean",
    discounts: Mapping[str, float] | None = None,
    cancelled: threading.Event | None = None,
    next_plan: SharingPlan | None = None,
    reweigh: Reweigh | None = None,
    couple: Couple | None = None,
) -> None:
    """Advance `model` by one version, or leave it as it is and raise.

    Updates are read from the spool block by block, in the order of client ids, so the result does not
    depend on who came first and memory not on how many came. A slot that nobody trained keeps its value, unless it is
    tied to others, and so does one that is frozen in this round: a late update of a round in which it was not has no
    weight there.
    Memory: the next value of every slot that moves, beside the old ones.

    Args:
        model: the version that the clients started from; advanced in place.
        updates: what the spool holds of the contributing clients.
        contributions: client id to examples per task, as accepted.
        task_weights: how tasks weigh in a slot they share.
        aggregators: say which one reduces a slot's updates.
        task_step: whether the moves of tasks that share a slot are averaged or added.
        discounts: client id to a factor of its weight, where it is not 1: a late update's for its staleness. What it
            takes away is not given to the others, as in FedBuff.
        cancelled: set by another thread to end the fold at the next slot.
        next_plan: the plan of the next round, with which the new version is stored; None: as it is.
        reweigh: changes the weights of a slot's updates, before the discounts; a slot that it leaves none keeps its
            value.
        couple: moves slots that are tied to each other, once all have their next value.

    Raises:
        ReductionCancelled: `cancelled` was set.
        UnsoundModel: an element of a slot's next value is not finite.
        SpoolError: an update can't be read.
        PlanError: an update does not fit its slot.
    """
    failpoint("reduce.begun")
    ordered = sorted(updates, key=lambda update: update.client_id)
    holders = {u.client_id: frozenset(tensor.slot for tensor in u.header.tensors) for u in ordered}
    factors = discounts or {}
    slot_ids = list(model.values)
    middle = slot_ids[len(slot_ids) // 2] if slot_ids else ""

    def step(slot: Slot, value: Tensor) -> Tensor:
        if cancelled is not None and cancelled.is_set():
            raise ReductionCancelled(f"version {model.version + 1} was not made: told to stop before slot {slot.id!r}")
        if slot.id == middle:
            failpoint("reduce.half")
        present = {c: contributions[c] for c, slots in holders.items() if slot.id in slots}
        weights = slot_weights(slot, present, task_weights, task_step)
        if not weights:
            return value
        if reweigh is not None:
            weights = dict(reweigh(slot, weights))
            if not weights:
                return value
        moved = aggregators.for_slot(slot).reduce(
            value,
            [
                SlotUpdate(
                    u.client_id,
                    weights[u.client_id] * factors.get(u.client_id, 1.0),
                    sum(present[u.client_id].values()),
                    u.delta(slot.id),
                )
                for u in ordered
                if u.client_id in weights
            ],
        )
        _require_finite(slot, moved, model.version + 1, sorted(weights))
        return moved

    try:
        for update in ordered:
            update.open()
        model.advance(step, next_plan, None if couple is None else partial(couple, model.plan))
    finally:
        for update in ordered:
            update.close()
    model.encode()
    failpoint("reduce.done")


def _require_finite(slot: Slot, value: Tensor, version: int, client_ids: Sequence[str]) -> None:
    elements = array_of(value).reshape(-1)
    for start in range(0, len(elements), _CHECKED):
        if not all_finite(dtype_name(value), elements[start : start + _CHECKED].data):
            raise UnsoundModel(
                f"version {version} would hold values that are not finite in slot {slot.id!r}, from the updates of "
                f"{', '.join(client_ids)}: the model stays at version {version - 1}"
            )
