"""``python -m server`` with slots that are frozen from the start: those that ``FEDMTL_TEST_FREEZE`` selects."""

from __future__ import annotations

import os
from typing import Literal
from unittest.mock import patch

from common.blueprint import Blueprint
from common.plan import SharingPlan
from common.selectors import select
from server.__main__ import app
from server.strategy import initial_plan


def _frozen_plan(mode: Literal["mtl", "per_task"], blueprint: Blueprint) -> SharingPlan:
    plan = initial_plan(mode, blueprint)
    chosen = select(os.environ["FEDMTL_TEST_FREEZE"].split(","), blueprint.parameters)
    return plan.freeze(slot.id for slot in plan.slots if slot.parameter in chosen)


patch("server.start.initial_plan", _frozen_plan).start()

if __name__ == "__main__":
    app()
