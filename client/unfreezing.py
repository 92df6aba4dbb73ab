"""Progressive unfreezing within a round: which slots are open for training from which step on."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping

from client.slot_model import SlotModel
from common.errors import PlanError
from common.plan import Slot
from common.selectors import select_present
from common.training import TrainSettings, round_steps, steps_of_epoch


def openings(model: SlotModel, settings: TrainSettings, num_examples: Mapping[str, int]) -> dict[int, frozenset[str]]:
    """Step, from 0, to all slots that are open from it on; empty when everything is open throughout.

    Where the plan has frozen what the first entries open, so that a task would have nothing to train, the next entry
    counts from the beginning. Buffers are always open: the forward pass moves them, not the optimiser.

    Args:
        model: the slots, those of the whole encoder among them.
        settings: how to train.
        num_examples: task that trains to the number of its training examples.

    Raises:
        PlanError: no entry opens anything that one of the tasks may train.
    """
    opened = {slot_id for slot_id, slot in model.slots.items() if slot.spec.kind == "buffer"}
    found: dict[int, frozenset[str]] = {}
    idle, one_epoch = set(num_examples), steps_of_epoch(settings, num_examples)
    last = sys.maxsize if settings.local_epochs is None else round_steps(settings, num_examples) - 1
    for entry in settings.unfreeze:
        names = select_present(entry.open, (slot.spec for slot in model.slots.values()))
        # Rounded down: an epoch that lies within the round is reached in it, also where mixed batches run on over its
        # end and so take a step less than whole epochs would.
        step = 0 if idle else min(last, math.floor(entry.epoch * one_epoch + 1e-9))
        chosen = {slot_id: slot for slot_id, slot in model.slots.items() if slot.parameter in names}
        opened |= chosen.keys()
        idle -= _trainers(chosen.values())
        found[step] = frozenset(opened)
    if found and idle:
        raise PlanError(
            f"no entry of training.unfreeze opens anything that {sorted(idle)} may train: the plan has frozen it"
        )
    return found


def _trainers(slots: Iterable[Slot]) -> frozenset[str]:
    return frozenset().union(*(slot.trained_by for slot in slots if slot.spec.kind == "parameter"))
