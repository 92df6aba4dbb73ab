"""Progressive unfreezing within a round: which slots are open for training from which step on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from client.slot_model import SlotModel
from common.errors import PlanError
from common.plan import Slot
from common.selectors import select_present
from common.training import TrainSettings, steps_of_epochs


def openings(model: SlotModel, settings: TrainSettings, num_examples: Mapping[str, int]) -> dict[int, frozenset[str]]:
    """Step, from 0, to all slots that are open from it on; empty when everything is open throughout.

    Buffers are open always: the forward pass moves them, not the optimiser.

    Args:
        model: the slots, those of the whole encoder among them.
        settings: how to train.
        num_examples: task that trains to the number of its training examples.

    Raises:
        PlanError: at the beginning nothing is open that a task may train.
    """
    if not settings.unfreeze:
        return {}
    opened = {slot_id for slot_id, slot in model.slots.items() if slot.spec.kind == "buffer"}
    found: dict[int, frozenset[str]] = {}
    for entry in settings.unfreeze:
        names = select_present(entry.open, (slot.spec for slot in model.slots.values()))
        opened |= {slot_id for slot_id, slot in model.slots.items() if slot.parameter in names}
        found[steps_of_epochs(entry.epoch, settings, num_examples)] = frozenset(opened)
    _require_something_to_train(
        num_examples, [slot for slot_id, slot in model.parameter_slots.items() if slot_id in found[0]]
    )
    return found


def _require_something_to_train(tasks: Iterable[str], slots: Iterable[Slot]) -> None:
    trained = frozenset().union(*(slot.trained_by for slot in slots))
    if idle := sorted(set(tasks) - trained):
        raise PlanError(
            f"training.unfreeze: at epoch 0 it opens nothing that {idle} may train. Open more of the model first, "
            "or leave it to the server's plan what is frozen."
        )
