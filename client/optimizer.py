"""The local optimiser: how fast each slot learns, which ones decay, and a fresh state every round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.optim import SGD, AdamW, Optimizer

from client.slot_model import SlotModel
from common.parameter_rates import ParameterRate, parameter_rates
from common.plan import Slot
from common.training import TrainSettings


def build_optimizer(model: SlotModel, slots: Mapping[str, Slot], settings: TrainSettings) -> Optimizer:
    """The optimiser of one round over these slots; rates are set by `set_learning_rate` before each step.

    A parameter whose gradient is None in a step (the head of another task, a layer that is not open yet) is left alone,
    its momentum included; its state begins with its first gradient.

    Args:
        model: holds the parameters, those of all layers that its tasks use.
        slots: those to train, parameters only, at least one.
        settings: which optimiser, and the rates.
    """
    rates = parameter_rates((slot.spec for slot in model.slots.values()), settings)
    grouped: dict[ParameterRate, list[torch.nn.Parameter]] = {}
    for slot_id, slot in slots.items():
        grouped.setdefault(rates[slot.parameter], []).append(model.parameter(slot_id))
    groups = [
        {"params": parameters, "weight_decay": rate.weight_decay, "rate_multiplier": rate.multiplier}
        for rate, parameters in grouped.items()
    ]
    if settings.optimizer == "sgd":
        return SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, fused=True)
    return AdamW(groups, lr=settings.learning_rate, fused=True)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the step's rate in each group, with the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_multiplier"]


def decays(slot: Slot, settings: TrainSettings, slots: Iterable[Slot]) -> bool:
    """Whether weight decay moves a slot: matrices do, outside the embeddings, unless `groups` says otherwise.

    An embedding row that no example touched has a zero gradient, so it moves by weight decay only. Without decay
    its delta is exactly zero and the update need not carry it.

    Args:
        slot: the one in question.
        settings: how to train.
        slots: all that the client's tasks use, `slot` among them: selectors speak of the whole encoder.
    """
    return parameter_rates((each.spec for each in slots), settings)[slot.parameter].weight_decay > 0
