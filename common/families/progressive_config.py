"""The `model:` section of the `progressive` family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.families.tabular_config import FlexibleWidths, TabularConfig, Width


class ProgressiveConfig(TabularConfig):
    """A network per task, each reading the layers of those before it and changing none of them (Rusu et al. 2016, arXiv
    1606.04671); the order is that of `tasks`. Trained one after the other with ``freezing.schedule:
    [{from_round: 1, until_round: 5, open: "own:FIRST"}, {from_round: 6, open: "own:SECOND"}]``."""

    family: Literal["progressive"]

    column: FlexibleWidths = Field(default=[64, 32])
    """Widths of the layers below each task's tower."""

    laterals: bool = True
    """Read the earlier tasks' layers; false: a network per task, as `single_task`."""

    adapter: Width = 8
    """Width to which an adapter reduces the layer that it reads."""
