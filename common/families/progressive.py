"""The `progressive` family: a column per task that reads the columns before it and never changes them.

Progressive neural networks (Rusu et al. 2016, arXiv 1606.04671). The columns stand in the order of the configuration's
tasks; layer l of column k computes

    h^k_l = ReLU(W^k_l h^k_{l-1} + b^k_l + sum_{j<k} U^kj_l ReLU(V^kj_l a^kj_l h^j_{l-1}))

for every layer above the first, the first of the tower among them. The adapter of a pair of columns multiplies by a
scalar a, reduces to `adapter` units (V) and widens again (U). What is read is cut from the graph, so a task's loss
gives no gradient to earlier columns, and an earlier task's outputs stay the same to the bit whatever is trained later:
there is no forgetting. Without laterals the outputs are those of `single_task`.

The paper trains column after column. In a federation `freezing.schedule` does that, with the selector ``own:TASK``, and
only the column in training travels upwards; without a schedule all columns learn at once, each reading moving ones.
Clients of task k hold the columns up to k, not those after it.

Parameters are named ``columns.<task>.layers.<n>.*``, ``laterals.<task>.<earlier task>.<n>.*`` (reads the earlier
column's layer n) and ``heads.<task>.*``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

from common.families.base import TrainingPass
from common.families.layers import HiddenLayers
from common.families.module_blueprint import Place
from common.families.progressive_config import ProgressiveConfig
from common.families.tabular_model import TabularDescription, TabularModel, head_place

FAMILY: Final = "progressive"
#: Where an adapter's scalar starts: the paper takes a small value, so that a column begins nearly by itself.
FIRST_SCALE: Final = 0.1


class Lateral(nn.Module):
    """An adapter ``U ReLU(V (a h) + b)``: (B, width) to (B, outputs) by way of (B, adapter)."""

    def __init__(self, width: int, adapter: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1))
        self.down = nn.Linear(width, adapter)
        self.up = nn.Linear(adapter, outputs, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """What joins the sum of the reader's layer."""
        joined: Tensor = self.up(torch.relu(self.down(self.scale * hidden)))
        return joined


class ProgressiveModel(TabularModel[ProgressiveConfig]):
    """Columns (B, F) to (B, column[-1]) of the model's tasks and of all before them, towers of the model's own."""

    family = FAMILY
    cuts_gradients = True

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        order = self.all_tasks
        self._earlier = {task: order[:place] if config.laterals else () for place, task in enumerate(order)}
        self._columns_of = {task: (*self._earlier[task], task) for task in order}
        held = self._in_order(column for task in self.tasks for column in self._columns_of[task])
        self.columns = nn.ModuleDict(
            {task: HiddenLayers(config.input_width, config.column, config.dropout) for task in held}
        )
        self.heads = self.towers(config.column[-1])
        self.laterals = nn.ModuleDict(
            {
                task: nn.ModuleDict({other: self._laterals(task) for other in self._earlier[task]})
                for task in held
                if self._earlier[task]
            }
        )

    def _laterals(self, task: str) -> nn.ModuleList:
        """The adapters by which a task's column, and if it is the model's its tower, reads another, layer by layer."""
        config = self.config
        into_tower = [[*config.tower, self._towers[task].outputs][0]] if task in self.tasks else []
        sizes = itertools.pairwise([*config.column, *into_tower])
        return nn.ModuleList(Lateral(width, config.adapter, outputs) for width, outputs in sizes)

    def _in_order(self, tasks: Iterable[str]) -> list[str]:
        wanted = frozenset(tasks)
        return [task for task in self.all_tasks if task in wanted]

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """For each distinct part of the batch the columns that its tasks read, once, and their towers."""
        together: dict[tuple[int | None, int | None], list[str]] = {}
        for task, rows in parts.items():
            together.setdefault((rows.start, rows.stop), []).append(task)
        found: dict[str, Tensor] = {}
        for tasks in together.values():
            found |= self._outputs(tasks, batch["features"][parts[tasks[0]]])
        return TrainingPass({task: found[task] for task in parts})

    def _outputs(self, tasks: Sequence[str], features: Tensor) -> dict[str, Tensor]:
        """What these tasks put out for the same rows (B, F)."""
        outputs: dict[str, Tensor] = {}
        read: dict[str, list[Tensor]] = {}  # column to its layers' activations, cut from the graph
        for task in self._in_order(column for reader in tasks for column in self._columns_of[reader]):
            column, values, layers = cast("HiddenLayers", self.columns[task]), features, []
            for number in range(len(self.config.column)):
                values = column.step(number, values, self._joining(task, number - 1, read))
                layers.append(values.detach())
            if task in tasks:
                outputs[task] = self.heads[task](values, self._joining(task, len(layers) - 1, read))
            read[task] = layers
        return outputs

    def _joining(self, task: str, layer: int, read: Mapping[str, Sequence[Tensor]]) -> Tensor | None:
        """What earlier columns' layer of this number adds to the task's next; None: nothing does."""
        if layer < 0 or not self._earlier[task]:
            return None
        adapters = cast("Mapping[str, nn.ModuleList]", self.laterals[task])
        joining = [adapters[other][layer](read[other][layer]) for other in self._earlier[task]]
        return torch.stack(joining).sum(0)

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """A column and its laterals are read by its task and all after it, and trained by its task."""
        if head := head_place(name):
            return head
        config, order = description.config, tuple(description.towers)
        assert isinstance(config, ProgressiveConfig)
        part, task, *rest = name.split(".")
        own = frozenset({task})
        readers = frozenset(order[order.index(task) :]) if config.laterals else own
        if part == "columns":
            return Place(readers, own, f"layer.{rest[1]}")
        into_tower = int(rest[1]) == len(config.column) - 1
        return Place(own if into_tower else readers, own, "lateral")

    @classmethod
    def first_value(cls, name: str, shape: torch.Size, description: TabularDescription) -> Tensor | None:
        """The scalars of the adapters begin small."""
        del description
        return torch.full(shape, FIRST_SCALE) if name.endswith(".scale") else None
