"""The `single_task` family: a network per task, nothing shared. The baseline of every comparison.

Parameters are named ``columns.<task>.layers.<n>.*`` and ``heads.<task>.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from common.families.base import TrainingPass
from common.families.layers import HiddenLayers
from common.families.module_blueprint import Place
from common.families.tabular_config import SingleTaskConfig
from common.families.tabular_model import TabularDescription, TabularModel, head_place

FAMILY: Final = "single_task"


class SingleTaskModel(TabularModel[SingleTaskConfig]):
    """``y_k = h_k(f_k(x))``: each task's column (B, F) to (B, column[-1]), its tower to (B, C) or (B,)."""

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        self.columns = nn.ModuleDict(
            {task: HiddenLayers(config.input_width, config.column, config.dropout) for task in self.tasks}
        )
        self.heads = self.towers(config.column[-1])

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """Each task's network over its rows."""
        features = batch["features"]
        return TrainingPass(
            {task: self.heads[task](self.columns[task](features[rows])) for task, rows in parts.items()}
        )

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:  # noqa: ARG003  # of all tasks alike
        """Everything is one task's own."""
        _, task, _, layer, *_ = name.split(".")
        own = frozenset({task})
        return head_place(name) or Place(own, own, f"layer.{layer}")
