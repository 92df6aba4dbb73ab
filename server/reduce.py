"""One round's updates become the next version: slot by slot, each client's delta by its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from common.plan import Slot
from server.aggregation import Aggregator, SlotUpdate
from server.model_state import ModelState
from server.round import Examples
from server.spool import SpooledUpdate
from server.weights import TaskStep, TaskWeights, slot_weights


def reduce_round(
    model: ModelState,
    updates: Sequence[SpooledUpdate],
    contributions: Mapping[str, Examples],
    task_weights: TaskWeights,
    aggregator: Aggregator,
    task_step: TaskStep = "mean",
) -> None:
    """Advance `model` by one version.

    Updates are read from the spool block by block, in the order of client ids, so the result does not
    depend on who came first and memory not on how many came. A slot that nobody trained keeps its value.

    Args:
        model: the version that the clients started from; advanced in place.
        updates: what the spool holds of the contributing clients.
        contributions: client id to examples per task, as accepted.
        task_weights: how tasks weigh in a slot they share.
        aggregator: reduces one slot's updates.
        task_step: whether the moves of tasks that share a slot are averaged or added.
    """
    ordered = sorted(updates, key=lambda update: update.client_id)
    holders = {u.client_id: frozenset(tensor.slot for tensor in u.header.tensors) for u in ordered}

    def step(slot: Slot, value: Tensor) -> Tensor:
        present = {c: contributions[c] for c, slots in holders.items() if slot.id in slots}
        weights = slot_weights(slot, present, task_weights, task_step)
        if not weights:
            return value
        return aggregator.reduce(
            value,
            [
                SlotUpdate(u.client_id, weights[u.client_id], sum(present[u.client_id].values()), u.delta(slot.id))
                for u in ordered
                if u.client_id in weights
            ],
        )

    try:
        for update in ordered:
            update.open()
        model.advance(step)
    finally:
        for update in ordered:
            update.close()
    model.encode()
