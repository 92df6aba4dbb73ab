"""Strategies: the sharing plan a run starts from.

A strategy decides policy and touches no tensors. Both modes below are one point each in plan space;
methods that move through it (splitting, merging, growing) change the plan between rounds.
"""

from __future__ import annotations

from typing import Literal

from common.blueprint import Blueprint
from common.plan import SharingPlan


def initial_plan(mode: Literal["mtl", "per_task"], blueprint: Blueprint) -> SharingPlan:
    """The plan of round 1.

    ``mtl``: every parameter has one copy for all tasks that use it, so the encoder is everybody's and a
    head its task's (MT-DNN, Liu et al. 2019, arXiv:1901.11504). ``per_task``: a copy per task, which
    is standard federated averaging (McMahan et al. 2017, arXiv:1602.05629) of one model per task.
    """
    match mode:
        case "mtl":
            return SharingPlan.shared(blueprint)
        case "per_task":
            return SharingPlan.separate(blueprint)
