"""The `cross_stitch` family: a column per task, coupled after every hidden layer by learnt linear mixtures.

Cross-stitch networks (Misra et al. 2016, arXiv 1604.03539). With ``x_j`` the activations of column j at layer l, column
k goes on from

    x~_k = sum_j a^l_kj x_j

with a row ``a^l_k`` of scalars, or of vectors with `per_channel`, in which row k begins with `stay` at k and the rest
spread evenly. With the identity for every a^l the outputs are those of `single_task`.

A task reads every column, so its clients hold, train and send all of them: T times the traffic of `single_task`. The
mixtures need a rate 100 to 1000 times that of the weights under SGD, as in the paper: ``training.groups: [{match:
"stitches.*", learning_rate: 100}]``. AdamW's steps are as long as the rate whatever the gradient, so there a hundred
times would throw them about; a few times is plenty. They do not decay.

Parameters are named ``columns.<task>.layers.<n>.*``, ``stitches.<n>.<task>`` (row of the task after layer n) and
``heads.<task>.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

from common.families.base import TrainingPass
from common.families.cross_stitch_config import CrossStitchConfig
from common.families.layers import HiddenLayers
from common.families.module_blueprint import Place
from common.families.tabular_model import TabularDescription, TabularModel, head_place
from common.selectors import STITCH

FAMILY: Final = "cross_stitch"


class Stitch(nn.Module):
    """The mixtures after one layer: a parameter for each reader, under its name, of shape (columns,) or (columns, D).

    Args:
        readers: whose mixtures.
        columns: how many there are, T.
        channels: the layer's width D for a mixture of each unit; None: one for all of them.
    """

    def __init__(self, readers: Sequence[str], columns: int, channels: int | None) -> None:
        super().__init__()
        shape = (columns,) if channels is None else (columns, channels)
        for task in readers:
            self.register_parameter(task, nn.Parameter(torch.empty(shape)))

    def forward(self, task: str, hidden: Tensor) -> Tensor:
        """What a task reads (B, D) of the activations (T, B, D)."""
        # Not by get_parameter, which wants a Parameter: under torch.func values of many models stand in for it.
        row = cast("Tensor", getattr(self, task))
        return torch.einsum("jbd,j->bd" if row.dim() == 1 else "jbd,jd->bd", hidden, row)


class CrossStitchModel(TabularModel[CrossStitchConfig]):
    """Columns (B, F) to (B, column[-1]) of all tasks of the federation, towers of the model's own."""

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        self.columns = nn.ModuleDict(
            {task: HiddenLayers(config.input_width, config.column, config.dropout) for task in self.all_tasks}
        )
        # The layers above read the mixtures of all columns, each tower only its own.
        readers = [self.all_tasks] * (len(config.column) - 1) + [self.tasks]
        self.stitches = nn.ModuleList(
            Stitch(tasks, len(self.all_tasks), width if config.per_channel else None)
            for width, tasks in zip(config.column, readers, strict=True)
        )
        self.heads = self.towers(config.column[-1])

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """All columns over the whole batch, and after the last layer each task's mixture of its own rows."""
        features = batch["features"]
        inputs = [features] * len(self.all_tasks)
        *below, last = self.stitches
        for number, stitch in enumerate(below):
            hidden = self._hidden(number, inputs)
            inputs = [stitch(task, hidden) for task in self.all_tasks]
        hidden = self._hidden(len(below), inputs)
        return TrainingPass({task: self.heads[task](last(task, hidden[:, rows])) for task, rows in parts.items()})

    def _hidden(self, number: int, inputs: Sequence[Tensor]) -> Tensor:
        """Activations (T, B, width) of every column's layer of this number, in the order of all tasks."""
        columns = [cast("HiddenLayers", self.columns[task]) for task in self.all_tasks]
        return torch.stack([column.step(number, values) for column, values in zip(columns, inputs, strict=True)])

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """Columns and mixtures are everybody's, except a task's mixture of the last layer, which its tower reads."""
        everyone = frozenset(description.towers)
        if head := head_place(name):
            return head
        part, *rest = name.split(".")
        if part == "columns":
            return Place(everyone, everyone, f"layer.{rest[2]}")
        number, task = int(rest[0]), rest[1]
        config = description.config
        assert isinstance(config, CrossStitchConfig)
        users = frozenset({task}) if number == len(config.column) - 1 else everyone
        return Place(users, users, STITCH)

    @classmethod
    def first_value(cls, name: str, shape: torch.Size, description: TabularDescription) -> Tensor | None:
        """A row begins with `stay` at its own column and the rest spread over the others."""
        if not name.startswith("stitches."):
            return None
        config, tasks = description.config, tuple(description.towers)
        assert isinstance(config, CrossStitchConfig)
        if len(tasks) == 1:
            return torch.ones(shape)
        row = torch.full(shape, (1 - config.stay) / (len(tasks) - 1))
        row[tasks.index(name.split(".")[2])] = config.stay
        return row
