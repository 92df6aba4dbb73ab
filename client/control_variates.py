"""SCAFFOLD on the client (Karimireddy et al. 2020, arXiv 1910.06378): each step is corrected for the client's drift."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from client.memory import Memory, resident
from client.slot_model import SlotModel
from common.errors import ConfigError
from common.plan import Slot
from common.training import TrainSettings


class ControlVariates:
    """Adds ``c - c_k`` to the gradients, and learns the client's next ``c_k`` from how far the round went (option II).

    ``c_k+ = c_k - c + (x - y_k) / (K eta)``, where ``K eta`` is the sum of the learning rates of the steps that moved
    the slot: rates differ by step and layer, and a step on another task leaves a head alone. With plain SGD and no
    clipping this is the mean of the round's gradients, weight decay included. Clipping makes ``c_k`` follow them more
    slowly; where it stands still is the same.

    Memory: three times the trained slots (``c``, ``c_k`` and their difference).

    Args:
        model: loaded for training.
        companions: slot id to its control slot, `common.control_variates.control_slots`.
        received: slot id to received value, control slots included.
        memory: what the client knows: its control variates, zero where there are none yet.
        settings: how the round is trained.

    Raises:
        ConfigError: the optimiser is not plain SGD, whose steps alone can be read back from the distance.
    """

    def __init__(
        self,
        model: SlotModel,
        companions: Mapping[str, Slot],
        received: Mapping[str, Tensor],
        memory: Memory,
        settings: TrainSettings,
    ) -> None:
        require_plain_sgd(settings)
        tasks = frozenset(model.tasks)
        self._companions = {
            slot_id: companions[slot_id]
            for slot_id in model.trained_by(tasks)
            if slot_id in companions and slot_id in model.parameter_slots
        }
        self._common = {slot_id: received[control.id] for slot_id, control in self._companions.items()}
        self._own: dict[str, Tensor] = {}
        for slot_id, control in self._companions.items():
            known = resident(memory, control, tasks)
            self._own[slot_id] = torch.zeros_like(self._common[slot_id]) if known is None else known
        self._tasks = tasks
        self._slot_of = {id(model.parameter(slot_id)): slot_id for slot_id in self._companions}
        self._shift = {s: (self._common[s] - self._own[s]).to(model.device) for s in self._companions}
        self._rates = dict.fromkeys(self._companions, 0.0)

    @torch.no_grad()
    def apply(self, optimizer: Optimizer) -> None:
        """Add the correction to the gradients of the step, and note its learning rates."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                slot_id = self._slot_of.get(id(parameter))
                if slot_id is not None and parameter.grad is not None:
                    parameter.grad.add_(self._shift[slot_id])
                    self._rates[slot_id] += group["lr"]

    def changes(self, deltas: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[Slot, Tensor]]:
        """What the round makes of the control variates.

        A slot that is frozen in this round, or its companion, and one that no step moved, keep theirs.

        Args:
            deltas: slot id to trained value minus received value.

        Returns:
            control slot id to the change of this client's control variate, which is sent; and the new ones.
        """
        changed: dict[str, Tensor] = {}
        own: dict[Slot, Tensor] = {}
        for slot_id, control in self._companions.items():
            if self._rates[slot_id] and slot_id in deltas and control.trained_by & self._tasks:
                change = deltas[slot_id].div(-self._rates[slot_id]).sub_(self._common[slot_id])
                changed[control.id], own[control] = change, self._own[slot_id] + change
        return changed, own


def require_plain_sgd(settings: TrainSettings) -> None:
    """Raises ConfigError for settings that SCAFFOLD can't work with."""
    if settings.optimizer != "sgd" or settings.momentum:
        raise ConfigError(
            f"SCAFFOLD needs training.optimizer: sgd with momentum 0, it is {settings.optimizer} with momentum "
            f"{settings.momentum:g}: the mean gradient of a round can be read from the distance it went only then"
        )
