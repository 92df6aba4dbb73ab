"""SCAFFOLD's control variates in the sharing plan: a companion slot beside every slot that clients train together.

The companion of the slot ``encoder.weight@qqp+sst2`` is ``encoder.weight#control@qqp+sst2``: same shape, same tasks.
The server holds the mean of its clients' control variates there (*c* in the paper), sends it, and takes each client's
*change* of its own as an update's delta, so that durability, checksums, resuming and the count of bytes are those of
any slot. A client's own control variate (*c_k*) is part of its memory. The family knows nothing of companions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from common.blueprint import Blueprint, ParameterSpec
from common.plan import SharingPlan, Slice, Slot
from common.torch_tensors import TORCH_DTYPES

SUFFIX: Final = "#control"


def with_controls(plan: SharingPlan) -> SharingPlan:
    """The plan with a companion for every parameter that some task trains and whose slots are all on the server."""
    at_home = {slot.parameter for slot in plan.slots if slot.residence == "client"}
    companions = {
        spec.name: replace(spec, name=spec.name + SUFFIX, kind="control")
        for spec in plan.blueprint.parameters
        if spec.kind == "parameter" and spec.trained_by and spec.name not in at_home
    }
    known = plan.blueprint
    blueprint = Blueprint(known.family, known.tasks, (*known.parameters, *companions.values()))
    further = (replace(slot, spec=companions[slot.parameter]) for slot in plan.slots if slot.parameter in companions)
    return SharingPlan(blueprint, (*plan.slots, *further))


def is_control(spec: ParameterSpec) -> bool:
    """Whether this is a control variate and no part of the model."""
    return spec.kind == "control"


def zero_controls(plan: SharingPlan) -> dict[str, Tensor]:
    """The control variates before the first round: zero, by parameter name."""
    return {
        spec.name: torch.zeros(spec.shape, dtype=TORCH_DTYPES[spec.dtype])
        for spec in plan.blueprint.parameters
        if is_control(spec)
    }


def without_controls(slice_: Slice) -> Slice:
    """The slots of a slice that are part of the model; the slice itself when all are."""
    kept = tuple(slot for slot in slice_.slots if not is_control(slot.spec))
    return slice_ if len(kept) == len(slice_.slots) else Slice(slice_.tasks, kept)


def control_slots(slice_: Slice) -> Mapping[str, Slot]:
    """Slot id to its companion, for the slots of a slice that have one."""
    companions = {(slot.parameter, slot.tasks): slot for slot in slice_.slots if is_control(slot.spec)}
    pairs = ((slot.id, companions.get((slot.parameter + SUFFIX, slot.tasks))) for slot in slice_.slots)
    return {slot_id: companion for slot_id, companion in pairs if companion is not None}
