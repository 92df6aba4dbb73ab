"""The `mmoe` family: experts shared by all tasks, a gate and a tower per task (Ma et al., KDD 2018).

Parameters are named ``experts.<n>.layers.<m>.*``, ``gate.<task>.*`` and ``heads.<task>.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from torch import Tensor, nn

from common.families.base import TrainingPass
from common.families.expert_config import MMoEConfig
from common.families.experts import ExpertStack
from common.families.gates import Gate
from common.families.mixture import with_a_gate_each
from common.families.module_blueprint import Place
from common.families.tabular_model import TabularDescription, TabularModel, head_place

FAMILY: Final = "mmoe"


class MMoEModel(TabularModel[MMoEConfig]):
    """``y_k = h_k(sum_i g^k(x)_i f_i(x))``: experts (B, F) to (B, E, H), each gate to (B, E), towers to (B, C) or
    (B,)."""

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config, number = self.config, self.config.experts.number
        self.experts = ExpertStack(number, config.input_width, config.experts.hidden)
        self.gate = nn.ModuleDict({task: Gate(config.input_width, number, config.gate) for task in self.tasks})
        self.dropout = nn.Dropout(config.dropout)
        self.heads = self.towers(config.experts.hidden[-1])

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """The experts once for the batch, then each task's gate and tower over its rows."""
        gates = cast("Mapping[str, Gate]", self.gate)
        found = with_a_gate_each(batch["features"], parts, self.experts, gates, self.dropout)
        return TrainingPass(
            {task: self.heads[task](hidden) for task, hidden in found.hidden.items()}, found.penalty, found.gates
        )

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:
        """The task's gate, over all experts."""
        return {task: tuple(f"expert.{n}" for n in range(len(self.experts)))}

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """Experts are everybody's, a gate is its task's."""
        everyone = frozenset(description.towers)
        kind, which, *_ = name.split(".")
        if kind == "experts":
            return Place(everyone, everyone, f"expert.{which}")
        own = frozenset({which})
        return head_place(name) or Place(own, own, "gate")
