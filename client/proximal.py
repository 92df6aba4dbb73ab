"""FedProx (Li et al. 2020, arXiv 1812.06127): local training is held back to where it started."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from client.slot_model import SlotModel


class ProximalTerm:
    """The gradient of ``mu / 2 * ||w - w_received||^2`` over the parameters that travel.

    With an optimiser that adapts its step to the gradient (AdamW) the term is part of what it adapts to, as it would be
    if it stood in the loss. A row of an embedding table that no example touched has not left its received value, so its
    gradient stays exactly zero. Slots that live on the client are left alone: nobody else's value pulls them.

    Memory: what is trained once more.

    Args:
        model: loaded for training, and not trained yet.
        mu: how strong, above 0.
    """

    def __init__(self, model: SlotModel, mu: float) -> None:
        self._mu = mu
        self._held = [
            (model.parameter(slot_id), model.value(slot_id).clone())
            for slot_id, slot in model.trained_by(frozenset(model.tasks)).items()
            if slot_id in model.parameter_slots and slot.residence == "server"
        ]

    @torch.no_grad()
    def apply(self, optimizer: Optimizer) -> None:  # noqa: ARG002  # see `client.correction.Correction`
        """Add the term to the gradients of the step."""
        for parameter, start in self._held:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self._mu)
