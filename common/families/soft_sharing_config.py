"""The `model:` section of the `soft_sharing` family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.families.tabular_config import FlexibleWidths, TabularConfig
from common.families.ties import TieKind
from common.strict_model import StrictModel


class CouplingConfig(StrictModel):
    """What keeps the tasks' columns near each other. In a federation the server does it after each round, so that it
    works for clients of one task; in central training it is a penalty in the loss."""

    kind: TieKind = "l2"
    """`l2`: squared distances between every two tasks' weights (Duong et al. 2015). `trace_norm`: the sum of singular
    values of the matrix of all tasks' weights, for each layer, which favours weights that few directions make up (Yang
    & Hospedales 2017, arXiv 1606.04038)."""

    strength: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Weight of the penalty in the loss; 0 is `single_task`."""

    round_step: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """In a federation: the server takes a proximal step of length `strength` times this. The counterpart of the
    learning rate times the steps of a round, over which a penalty in the loss adds up."""


class SoftSharingConfig(TabularConfig):
    """A network per task, the columns coupled by a penalty on how they differ."""

    family: Literal["soft_sharing"]

    column: FlexibleWidths = Field(default=[64, 32])
    """Widths of the layers below each task's tower."""

    coupling: CouplingConfig = CouplingConfig()
    """What keeps the columns near each other."""
