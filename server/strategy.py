"""Strategies: the sharing plan a run starts from.

A strategy decides policy and touches no tensors. Both modes below are one point each in plan space;
methods that move through it (splitting, merging, growing) change the plan between rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from common.blueprint import Blueprint
from common.control_variates import with_controls
from common.errors import ConfigError
from common.plan import SharingPlan
from common.selectors import select

Correction = Literal["none", "scaffold", "fednova"]


def initial_plan(
    mode: Literal["mtl", "per_task"],
    blueprint: Blueprint,
    resident: Iterable[str] = (),
    correction: Correction = "none",
) -> SharingPlan:
    """The plan of round 1.

    ``mtl``: every parameter has one copy for all tasks that use it, so the encoder is everybody's and a
    head its task's (MT-DNN, Liu et al. 2019, arXiv:1901.11504). ``per_task``: a copy per task, which
    is standard federated averaging (McMahan et al. 2017, arXiv:1602.05629) of one model per task.

    Args:
        mode: how tasks share.
        blueprint: the model's parameters.
        resident: selectors (`common.selectors`) of what each client keeps to itself. Norms: FedBN (Li et al. 2021,
            arXiv:2102.07623). Heads: FedPer (Arivazhagan et al. 2019, arXiv:1912.00818). Everything: training alone.
        correction: ``scaffold`` adds the control variates.

    Raises:
        ConfigError: a selector matches nothing, nothing is left for SCAFFOLD to correct, or a task would get a copy of
            its own of what only other tasks train.
    """
    if mode == "per_task":
        _require_own_training(blueprint)
    plan = SharingPlan.shared(blueprint) if mode == "mtl" else SharingPlan.separate(blueprint)
    try:
        at_home = select(resident, blueprint.parameters)
    except ConfigError as error:
        raise ConfigError(f"federation.resident: {error}") from error
    plan = plan.reside([slot.id for slot in plan.slots if slot.parameter in at_home], "client")
    if correction != "scaffold":
        return plan
    corrected = with_controls(plan)
    if corrected == plan:
        raise ConfigError("federation.correction: scaffold: no parameter both travels and is trained")
    return corrected


def _require_own_training(blueprint: Blueprint) -> None:
    """Refuse copies that nobody would train, as of the columns that later tasks of `progressive` read."""
    for spec in blueprint.parameters:
        if spec.trained_by and (readers := sorted(spec.used_by - spec.trained_by)):
            raise ConfigError(
                f"federation.mode: per_task: family {blueprint.family!r} has task {readers[0]!r} read {spec.name!r}, "
                f"which only {', '.join(sorted(spec.trained_by))} can train, so a copy of its own would stay as it was "
                "drawn; allowed is mode: mtl, or a family whose tasks train all that they read, such as single_task"
            )
