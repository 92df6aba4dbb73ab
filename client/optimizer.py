"""The local optimiser: which slots decay, which learn at the heads' rate, and a fresh state every round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim import SGD, AdamW, Optimizer

from client.slot_model import SlotModel
from common.plan import Slot
from common.training import TrainSettings


def build_optimizer(model: SlotModel, slots: Mapping[str, Slot], settings: TrainSettings) -> Optimizer:
    """The optimiser of one round over these slots; rates are set by `set_learning_rate` before each step.

    A parameter whose gradient is None in a step (the head of another task) is left alone, its momentum included.

    Args:
        model: holds the parameters.
        slots: those to train, parameters only, at least one.
        settings: which optimiser.
    """
    grouped: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for slot_id, slot in slots.items():
        grouped.setdefault((decays(slot), slot.spec.group == "head"), []).append(model.parameter(slot_id))
    groups = [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decay else 0.0,
            "rate_multiplier": settings.head_learning_rate if head else 1.0,
        }
        for (decay, head), parameters in grouped.items()
    ]
    if settings.optimizer == "sgd":
        return SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, fused=True)
    return AdamW(groups, lr=settings.learning_rate, fused=True)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the step's rate in each group, the heads' with its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_multiplier"]


def decays(slot: Slot) -> bool:
    """Whether weight decay applies: to matrices outside the embeddings.

    An embedding row that no example touched has a zero gradient, so it moves by weight decay only. Without decay
    its delta is exactly zero and the update need not carry it.
    """
    return len(slot.shape) > 1 and slot.spec.group != "embeddings"
