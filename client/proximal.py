"""FedProx (Li et al. 2020, arXiv 1812.06127): local training is held back to where it started."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from client.slot_model import SlotModel
from client.vocabulary import CompactTable


class ProximalTerm:
    """The gradient of ``mu / 2 * ||w - w_received||^2`` over the parameters that travel.

    With an optimiser that adapts its step to the gradient (AdamW) the term is part of what it adapts to, as it would be
    if it stood in the loss. A row of an embedding table that no example touched has not left its received value, so its
    gradient stays exactly zero. Slots that live on the client are left alone: nobody else's value pulls them.

    Args:
        model: loaded for training.
        received: slot id to received value; read in every step.
        mu: how strong, above 0.
        tables: slot id to its compact table, as they come to be.
    """

    def __init__(
        self, model: SlotModel, received: Mapping[str, Tensor], mu: float, tables: Mapping[str, CompactTable]
    ) -> None:
        self._mu = mu
        self._tables = tables
        self._held = {
            slot_id: (model.parameter(slot_id), received[slot_id].to(model.device))
            for slot_id, slot in model.trained_by(frozenset(model.tasks)).items()
            if slot_id in model.parameter_slots and slot.residence == "server"
        }

    @torch.no_grad()
    def apply(self, optimizer: Optimizer) -> None:  # noqa: ARG002  # see `client.correction.Correction`
        """Add the term to the gradients of the step."""
        for slot_id, (parameter, start) in self._held.items():
            if parameter.grad is not None:
                table = self._tables.get(slot_id)
                anchor = start if table is None else table.received_rows()
                parameter.grad.add_(parameter - anchor, alpha=self._mu)
