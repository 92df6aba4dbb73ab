"""The `model:` section of the `cross_stitch` family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.families.tabular_config import FlexibleWidths, TabularConfig


class CrossStitchConfig(TabularConfig):
    """A network per task; after every hidden layer each reads a learnt mixture of all (Misra et al. 2016, arXiv
    1604.03539). A client trains all columns, whatever its tasks. With `optimizer: sgd` mixtures learn slowly at the
    rate of the weights: ``training.groups: [{match: "stitches.*", learning_rate: 100}]`` gives them the 100 to 1000
    times of the paper. The steps of `adamw` do not depend on the gradient's size: there a few times is plenty."""

    family: Literal["cross_stitch"]

    column: FlexibleWidths = Field(default=[64, 32])
    """Widths of the layers below each task's tower."""

    stay: float = Field(default=0.9, allow_inf_nan=False)
    """What each task reads of its own column at first; of the others it reads the rest, each alike. 1 begins as
    `single_task`."""

    per_channel: bool = False
    """A mixture for each unit of a layer instead of one for the whole layer."""
