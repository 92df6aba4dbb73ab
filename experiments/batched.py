"""Many small models of one family trained at once: their parameters stacked, their passes one batched computation.

The models differ in initial values and in data, not in shape. What a model becomes is what training it alone would
make of it, up to rounding: losses are summed over models, so none has a gradient from another's, and Adam works
element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from common.families.tabular_family import TabularFamily
from common.seeds import derive_seed

#: Rows in one pass of an evaluation: activations of a handful of models stay in the processor's cache.
EVALUATION_ROWS = 1_000

#: Name to the values of all M models, (M, ...).
Stacked = dict[str, Tensor]
#: See `_Objective.forward`; of M models with a first dimension M.
Computed = tuple[Tensor, Tensor, dict[str, dict[str, Tensor]]]


@dataclass(frozen=True)
class BatchedRows:
    """The rows of M models; a model's tasks label the same rows.

    Attributes:
        features: (M, N, d) float32, or (N, d) where all models read the same rows.
        labels: (M, N, K) float32, of the K tasks in the family's order.
    """

    features: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        """N, the rows of each model."""
        return self.labels.shape[1]

    def take(self, rows: slice | Tensor) -> BatchedRows:
        """Some rows of every model."""
        return BatchedRows(self.features[..., rows, :], self.labels[:, rows])


@dataclass(frozen=True)
class Schedule:
    """How models are trained.

    Attributes:
        steps: minibatches.
        batch_size: rows of a minibatch; what is left at the end of an epoch is left out.
        learning_rate: of Adam, constant.
    """

    steps: int = 2_500
    batch_size: int = 256
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Evaluation:
    """What M models do on some rows.

    Attributes:
        losses: (M, K), the mean squared error of each task.
        gates: task to gate to (M, E), the mean over the rows of each expert's weight.
    """

    losses: Tensor
    gates: Mapping[str, Mapping[str, Tensor]]


class _Objective(nn.Module):
    """The loss of one model as a forward pass, which is what `functional_call` can call."""

    def __init__(self, family: TabularFamily) -> None:
        super().__init__()
        self.model = family.build(tuple(family.tasks))
        self._parts = dict.fromkeys(family.tasks, slice(None))

    def forward(self, features: Tensor, labels: Tensor) -> Computed:
        """Of rows (B, d) and (B, K): what to minimise, each task's squared error (K,), what each gate's experts got."""
        found = self.model.training_pass(self._parts, {"features": features})
        outputs = torch.stack([found.outputs[task] for task in self._parts], dim=-1)
        gates = {task: {name: use.mass for name, use in gates.items()} for task, gates in found.gates.items()}
        errors = (outputs - labels).square().mean(dim=0)
        return errors.sum() if found.penalty is None else errors.sum() + found.penalty, errors, gates


class BatchedModels:
    """M models of one family.

    Args:
        family: all of whose tasks are regressions of the same rows.
        seeds: M seeds; model m starts from ``family.initial_values(seeds[m])``.
    """

    def __init__(self, family: TabularFamily, seeds: Sequence[int]) -> None:
        self.family = family
        self._objective = _Objective(family)
        initial = [family.initial_values(seed) for seed in seeds]
        stacked = {name: torch.stack([values[name] for values in initial]) for name in initial[0]}
        trained = {p.name for p in family.blueprint().parameters if p.kind == "parameter" and p.trained_by}
        self.values: Stacked = {name: value.requires_grad_(name in trained) for name, value in stacked.items()}

    def train(
        self, rows: BatchedRows, schedule: Schedule, order_seed: int, on_step: Callable[[int], None] | None = None
    ) -> None:
        """Minimise each model's sum of task losses, and its family's penalty, by Adam.

        Random layers draw from torch's global stream, differently for every model.

        Args:
            rows: of M models, at least a minibatch each.
            schedule: how long and how fast.
            order_seed: of the order of rows, the same for all models.
            on_step: called with the number of each step before it; may raise to end the training.
        """
        trained = [value for value in self.values.values() if value.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=schedule.learning_rate, fused=True)
        self._objective.train()
        compute = self._batched(rows)
        per_epoch = rows.count // schedule.batch_size
        shuffled = rows
        for step in range(schedule.steps):
            if on_step is not None:
                on_step(step)
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                generator = torch.Generator().manual_seed(derive_seed(order_seed, "order", epoch))
                # Copied once per epoch, so that each minibatch is one piece of memory.
                shuffled = rows.take(torch.randperm(rows.count, generator=generator))
            batch = shuffled.take(slice(place * schedule.batch_size, (place + 1) * schedule.batch_size))
            loss, _, _ = compute(self.values, batch.features, batch.labels)
            optimizer.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()

    @torch.no_grad()
    def evaluate(self, rows: BatchedRows) -> Evaluation:
        """Losses and gates on all rows, dropout and the gates' noise off."""
        self._objective.eval()
        compute = self._batched(rows)
        losses = torch.zeros(rows.labels.shape[0], rows.labels.shape[2], dtype=torch.float64)
        gates: dict[str, dict[str, Tensor]] = {task: {} for task in self.family.tasks}
        for start in range(0, rows.count, EVALUATION_ROWS):
            block = rows.take(slice(start, start + EVALUATION_ROWS))
            _, found, used = compute(self.values, block.features, block.labels)
            losses += found * (block.count / rows.count)
            for task, of_task in used.items():
                for name, mass in of_task.items():
                    gates[task][name] = gates[task].get(name, 0) + mass / rows.count
        return Evaluation(losses, gates)

    def _batched(self, rows: BatchedRows) -> Callable[..., Computed]:
        """The objective for stacked values and the minibatches of all models."""

        def one(values: Stacked, features: Tensor, labels: Tensor) -> Computed:
            named = {f"model.{name}": value for name, value in values.items()}
            return cast("Computed", functional_call(self._objective, named, (features, labels)))

        own = 0 if rows.features.dim() == 3 else None
        batched: Callable[..., Computed] = vmap(one, in_dims=(0, own, 0), randomness="different")
        return batched
