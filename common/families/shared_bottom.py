"""The `shared_bottom` family: an MLP over tabular rows shared by all tasks, a tower per task (Caruana 1997).

Parameters are named ``encoder.layers.<n>.*`` (the bottom) and ``heads.<task>.*`` (the towers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from common.families.base import TrainingPass
from common.families.layers import HiddenLayers, rows_of
from common.families.module_blueprint import Place
from common.families.tabular_config import SharedBottomConfig
from common.families.tabular_model import TabularDescription, TabularModel, head_place

FAMILY: Final = "shared_bottom"


class SharedBottomModel(TabularModel[SharedBottomConfig]):
    """``y_k = h_k(f(x))``: bottom (B, F) to (B, bottom[-1]), towers to (B, C) or (B,)."""

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        self.encoder = HiddenLayers(config.input_width, config.bottom, config.dropout)
        self.heads = self.towers(config.bottom[-1])

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """The bottom once for the batch, then each task's tower over its rows."""
        hidden = self.encoder(batch["features"])
        return TrainingPass({task: self.heads[task](rows_of(hidden, rows)) for task, rows in parts.items()})

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """The bottom is everybody's."""
        everyone = frozenset(description.towers)
        return head_place(name) or Place(everyone, everyone, f"layer.{name.split('.')[2]}")
