"""The `adversarial` family: shared features that do not tell the task, and features of each task's own beside them.

Adversarial shared-private model (Liu, Qiu & Huang 2017, arXiv 1704.05742): the tower of task k reads the shared
features s(x) and its own p_k(x), both at once. Training minimises, beside the tasks' losses,

    adversarial * L_adv + orthogonality * L_diff

**L_adv** is the cross-entropy of a linear discriminator D that tells the task from s(x), behind a gradient reversal: D
learns to tell tasks apart, and s gets minus the gradient. **L_diff** is ``|S_k^T P_k|^2`` (Frobenius) over the rows of
each task, features centred over them and rows normalised, as in the authors' code. As a product over pairs of rows it
grows with the batch; here it is a mean over rows, as penalties of families are, so that its weight fits any batch size.

**A client of one task** sees one class, and D would learn to name it whatever s(x) is: L_adv says nothing there. So
every task's clients keep running moments of their s-features, which travel as buffers and are averaged like any; raw
moments, as the mean of those is the moment of all rows, spread between clients included. In a pass without rows of some
task, D is shown as many draws from a normal distribution with the task's moments as the pass has rows of each other
task. D so learns to tell the rows at hand from what other clients' rows look like, and s works against that with the
gradient of its own rows alone: draws do not depend on the model. D is linear, as in the paper: where the features of
all tasks have equal means, D that tells nothing is the optimum, however normal their distribution is not.

What remains out of reach: the statistics are those of models some steps old, and before a task's first update there
are none. Such a task takes no part, and a pass with one known class has no L_adv. Where tasks are labels of the same
rows (`training.same_rows`, or rows of a pass that are several tasks' at once), there is nothing to tell apart and D
learns their shares.

Evaluation uses none of this. With both weights 0 outputs and gradients are those of a plain shared-private model.

Parameters are named ``encoder.layers.<n>.*`` (shared), ``columns.<task>.layers.<n>.*`` (own), ``heads.<task>.*``,
``discriminator.*``; buffers ``statistics.<task>.{seen,mean,square}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

from common.families.adversarial_config import AdversarialConfig
from common.families.base import TrainingPass
from common.families.layers import HiddenLayers
from common.families.module_blueprint import Place
from common.families.tabular_model import TabularDescription, TabularModel, head_place

FAMILY: Final = "adversarial"
#: Share of a pass in the running moments.
MOMENTUM: Final = 0.1
#: Added to the squared length of a row before it is normalised: a constant feature is no direction.
_TINY: Final = 1e-6


class Moments(nn.Module):
    """Running moments of one task's shared features (B, D), over passes with falling weights.

    Attributes:
        seen: (1,), the sum of those weights, from 0 towards 1; what the other two are to be divided by.
        mean: (D,), of the features.
        square: (D,), of their squares.
    """

    seen: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.zeros(width))

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Let a pass's rows count; none where the moments are frozen or in evaluation."""
        if not self.training:
            return
        rows = features.detach().float()
        self.seen.mul_(1 - MOMENTUM).add_(MOMENTUM)
        self.mean.mul_(1 - MOMENTUM).add_(rows.mean(0) * MOMENTUM)
        self.square.mul_(1 - MOMENTUM).add_(rows.square().mean(0) * MOMENTUM)

    @torch.no_grad()
    def draw(self, rows: int) -> Tensor:
        """Normal features (rows, D) with these moments, from torch's global stream; zeros while nothing was seen."""
        seen = self.seen.clamp_min(1e-9)
        mean = self.mean / seen
        deviation = (self.square / seen - mean.square()).clamp_min(0).sqrt()
        return mean + deviation * torch.randn(rows, len(mean), device=mean.device)

    @property
    def known(self) -> Tensor:
        """A scalar: 1 where anything was seen, else 0."""
        return (self.seen > 0).float().squeeze(0)


class AdversarialModel(TabularModel[AdversarialConfig]):
    """Shared layers (B, F) to (B, bottom[-1]), columns to (B, column[-1]) and towers of the model's tasks."""

    family = FAMILY

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__(description, tasks)
        config = self.config
        self.encoder = HiddenLayers(config.input_width, config.bottom, config.dropout)
        self.columns = nn.ModuleDict(
            {task: HiddenLayers(config.input_width, config.column, config.dropout) for task in self.tasks}
        )
        self.heads = self.towers(config.bottom[-1] + config.column[-1])
        self._opposed = config.adversarial > 0 and len(self.all_tasks) > 1
        if self._opposed:
            self.discriminator = nn.Linear(config.bottom[-1], len(self.all_tasks))
            self.statistics = nn.ModuleDict({task: Moments(config.bottom[-1]) for task in self.all_tasks})

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """The shared layers once for the batch, columns and towers for each task's rows; in training the penalties."""
        features = batch["features"]
        hidden = self.encoder(features)
        shared = {task: hidden[rows] for task, rows in parts.items()}
        own = {task: self.columns[task](features[rows]) for task, rows in parts.items()}
        outputs = {task: self.heads[task](torch.cat([shared[task], own[task]], dim=1)) for task in parts}
        return TrainingPass(outputs, self._penalty(shared, own) if self.training else None)

    def _penalty(self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensor | None:
        """The weighted sum of L_adv and L_diff of features (B_k, D) by task; None where both have no part in it."""
        terms = []
        if self._opposed:
            terms.append(self.config.adversarial * self._discrimination(shared))
        if self.config.orthogonality:
            rows = sum(len(values) for values in shared.values())
            common = [in_common(shared[task], own[task]) for task in shared]
            terms.append(self.config.orthogonality * torch.stack(common).sum() / rows)
        return torch.stack(terms).sum() if terms else None

    def _discrimination(self, shared: Mapping[str, Tensor]) -> Tensor:
        """L_adv: how badly D tells the rows' tasks, a mean over the rows, and the draws of each absent task.

        Classes weigh alike as far as rows do: an absent task's mean is divided by the number of the tasks with rows.
        """
        rows = sum(len(values) for values in shared.values())
        own = torch.stack([self._surprise(task, reversed_gradient(values)).sum() for task, values in shared.items()])
        known, drawn = torch.zeros_like(own[0]), torch.zeros_like(own[0])
        for task in self.all_tasks:
            moments = cast("Moments", self.statistics[task])
            if task in shared:
                moments.update(shared[task])
            else:
                draws = moments.draw(max(1, rows // len(shared)))
                known = known + moments.known
                drawn = drawn + moments.known * self._surprise(task, draws).mean() / len(shared)
        several = (known + len(shared) - 1).clamp(max=1)
        return several * (own.sum() / rows + drawn)

    def _surprise(self, task: str, features: Tensor) -> Tensor:
        """Minus the log probability (B,) that D gives the task."""
        log_probabilities = torch.log_softmax(self.discriminator(features), dim=1)
        return -log_probabilities[:, self.all_tasks.index(task)]

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """Shared layers and discriminator are everybody's; all read a task's statistics, its rows alone move them."""
        if head := head_place(name):
            return head
        everyone = frozenset(description.towers)
        part, *rest = name.split(".")
        own = frozenset({rest[0]})
        match part:
            case "columns":
                return Place(own, own, f"layer.{rest[2]}")
            case "statistics":
                return Place(everyone, own, "statistics")
            case "discriminator":
                return Place(everyone, everyone, "discriminator")
            case _:
                return Place(everyone, everyone, f"layer.{rest[1]}")

    @classmethod
    def first_value(cls, name: str, shape: torch.Size, description: TabularDescription) -> Tensor | None:
        """No statistics at first."""
        del description
        return torch.zeros(shape) if name.startswith("statistics.") else None


def reversed_gradient(values: Tensor) -> Tensor:
    """The values themselves, through which a gradient passes with its sign changed (Ganin & Lempitsky 2015, arXiv
    1409.7495). Twice a number less the number is exact in floating point."""
    return 2 * values.detach() - values


def in_common(one: Tensor, other: Tensor) -> Tensor:
    """``|S^T P|^2`` (Frobenius) of features (B, D) and (B, E), centred over the rows, rows of length 1; a scalar."""
    return (_directions(one).T @ _directions(other)).square().sum()


def _directions(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) + _TINY)
