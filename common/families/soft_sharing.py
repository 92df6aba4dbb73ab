"""The `soft_sharing` family: a network per task, whose columns are kept near each other instead of being shared.

The layers below the towers are tied tensor by tensor, weights and biases alike: with ``w_k`` task k's copy, the
training minimises beside the tasks' losses

* `l2`: ``strength * sum_{j<k} |w_j - w_k|^2`` (Duong et al. 2015, "Low resource dependency parsing");
* `trace_norm`: ``strength * |[w_1 ... w_T]|_*``, the sum of singular values of the matrix with a flattened copy in each
  column (Yang & Hospedales 2017, arXiv 1606.04038, last-axis flattening).

**One place per run.** A client of one task has no other task's copy to be near to, so in a federation the server
couples: after the clients' updates are averaged it takes a proximal step on the penalty (`server.coupling`), of length
``strength * round_step``, and clients train with the plain losses. In central training, where one model holds all tasks
and no server averages, the penalty is part of the loss. Which of the two it is follows from where the family comes
from: a client's is built from the server's description. With strength 0 both are `single_task`.

Parameters are named ``columns.<task>.layers.<n>.*`` and ``heads.<task>.*``, as in `single_task`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import combinations
from typing import Final

import torch
from torch import Tensor, nn

from common.families.base import TrainingPass
from common.families.layers import HiddenLayers
from common.families.module_blueprint import Place
from common.families.soft_sharing_config import SoftSharingConfig
from common.families.tabular_model import TabularDescription, TabularModel, head_place
from common.families.ties import Tie, TieKind

FAMILY: Final = "soft_sharing"


class SoftSharingModel(TabularModel[SoftSharingConfig]):
    """``y_k = h_k(f_k(x))``: each task's column (B, F) to (B, column[-1]), its tower to (B, C) or (B,)."""

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        self.columns = nn.ModuleDict(
            {task: HiddenLayers(config.input_width, config.column, config.dropout) for task in self.tasks}
        )
        self.heads = self.towers(config.column[-1])
        self._couples = not description.federated and config.coupling.strength > 0 and len(self.tasks) > 1

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """Each task's network over its rows; in central training the penalty."""
        features = batch["features"]
        outputs = {task: self.heads[task](self.columns[task](features[rows])) for task, rows in parts.items()}
        return TrainingPass(outputs, self._penalty(parts) if self._couples and self.training else None)

    def _penalty(self, trained: Container[str]) -> Tensor:
        """The weighted penalty of all tensors of the columns; copies of tasks not in the pass count as constants."""
        coupling = self.config.coupling
        columns = [dict(self.columns[task].named_parameters()) for task in self.tasks]
        parts = []
        for name in columns[0]:
            copies = [
                column[name] if task in trained else column[name].detach()
                for task, column in zip(self.tasks, columns, strict=True)
            ]
            parts.append(apartness(copies, coupling.kind))
        return coupling.strength * torch.stack(parts).sum()

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:  # noqa: ARG003  # of all tasks alike
        """Everything is one task's own: what couples columns is no task's loss."""
        _, task, _, layer, *_ = name.split(".")
        own = frozenset({task})
        return head_place(name) or Place(own, own, f"layer.{layer}")

    @classmethod
    def ties(cls, description: TabularDescription) -> tuple[Tie, ...]:
        """Every tensor of the columns, in all tasks' copies."""
        config = description.config
        assert isinstance(config, SoftSharingConfig)
        step = config.coupling.strength * config.coupling.round_step
        if step == 0 or len(description.towers) < 2:
            return ()
        return tuple(
            Tie(
                tuple(f"columns.{task}.layers.{layer}.{part}" for task in description.towers),
                config.coupling.kind,
                step,
            )
            for layer in range(len(config.column))
            for part in ("weight", "bias")
        )


def apartness(copies: Sequence[Tensor], kind: TieKind) -> Tensor:
    """How far apart the tasks' copies of a tensor are, a scalar.

    Args:
        copies: of equal shape, at least one.
        kind: see `common.families.ties.TieKind`.
    """
    if kind == "l2":
        distances = [(one - other).square().sum() for one, other in combinations(copies, 2)]
        return torch.stack(distances).sum()
    return _sum_of_singular_values(torch.stack([copy.flatten() for copy in copies]))


def _sum_of_singular_values(rows: Tensor) -> Tensor:
    """The trace norm of a matrix (T, D), whose gradient is ``U V'`` for its singular vectors.

    Written ``<U V', W>``, with ``U V' = (W W')^(-1/2) W`` from the eigenvalues of a T x T matrix: for a few tasks and
    many weights a third of the time of a decomposition of W. Directions of no length have gradient 0.
    """
    with torch.no_grad():
        precise = rows.double()
        squares, vectors = torch.linalg.eigh(precise @ precise.T)
        roots = torch.where(squares > 1e-12 * squares[-1], squares.clamp_min(1e-300).rsqrt(), 0.0)
        directions = ((vectors * roots) @ vectors.T).to(rows.dtype) @ rows
    total: Tensor = (directions * rows).sum()
    return total
