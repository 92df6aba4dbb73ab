"""The `omoe` family: experts shared by all tasks and one gate for all, a tower per task (Ma et al., KDD 2018).

Parameters are named ``experts.<n>.layers.<m>.*``, ``gate.*`` and ``heads.<task>.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from common.families.base import TrainingPass
from common.families.expert_config import OMoEConfig
from common.families.experts import ExpertStack
from common.families.gates import Gate
from common.families.mixture import with_one_gate
from common.families.module_blueprint import Place
from common.families.tabular_model import TabularDescription, TabularModel, head_place

FAMILY: Final = "omoe"


class OMoEModel(TabularModel[OMoEConfig]):
    """``y_k = h_k(sum_i g(x)_i f_i(x))``: experts (B, F) to (B, E, H), gate to (B, E), towers to (B, C) or (B,).

    The gate looks at all rows of a batch at once: in training its balance and capacity are those of all tasks' rows.
    """

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        self.experts = ExpertStack(config.experts.number, config.input_width, config.experts.hidden)
        self.gate = Gate(config.input_width, config.experts.number, config.gate)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = self.towers(config.experts.hidden[-1])

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """The mixture once for the batch, then each task's tower over its rows."""
        found = with_one_gate(batch["features"], parts, self.experts, self.gate, self.dropout)
        return TrainingPass(
            {task: self.heads[task](hidden) for task, hidden in found.hidden.items()}, found.penalty, found.gates
        )

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002  # all tasks have the same
        """The one gate, over all experts."""
        return {"gate": tuple(f"expert.{n}" for n in range(len(self.experts)))}

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """Experts and gate are everybody's."""
        everyone = frozenset(description.towers)
        kind, number, *_ = name.split(".")
        return head_place(name) or Place(everyone, everyone, f"expert.{number}" if kind == "experts" else "gate")
