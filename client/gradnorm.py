"""Loss weights by GradNorm: every task's gradient of like size where the tasks part, more for those that lag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from common.selectors import EXPERT, HEAD, POOLER, expert_level, layer_of

if TYPE_CHECKING:
    from client.tally import TaskReport
    from common.plan import Slot

#: The least weight a task may have, with 1 the average.
LEAST_WEIGHT: Final = 0.01


class GradNormWeights:
    """Chen, Badrinarayanan, Lee & Rabinovich 2018 (arXiv 1711.02257), Algorithm 1.

    With G the norm of a task's weighted gradient at the last shared layer, and r its loss as a share of its first
    loss over the mean of these shares, the weights descend on ``sum |G - mean(G) r^alpha|``, the target held fixed,
    and are then scaled to sum to the number of tasks. A weight's gradient, plus or minus its task's norm, is divided
    by the mean of the norms, so that the rate means the same whatever the losses' unit (the authors use Adam).
    Only a step with at least two tasks teaches anything, about those it holds.

    Args:
        tasks: the client's, at least two.
        alpha: how strongly lagging tasks are favoured.
        rate: learning rate of the weights.
        remembered: numbers, ``loss:gradnorm:TASK`` (weight) and ``loss:gradnorm-first:TASK`` (first loss) among them.
        device: where losses are.
    """

    def __init__(
        self, tasks: list[str], alpha: float, rate: float, remembered: Mapping[str, float], device: torch.device
    ) -> None:
        self._alpha, self._rate = alpha, rate
        self._weights = {
            task: torch.tensor(remembered.get(f"loss:gradnorm:{task}", 1.0), device=device) for task in tasks
        }
        self._first = {
            task: torch.tensor(remembered[name], device=device)
            for task in tasks
            if (name := f"loss:gradnorm-first:{task}") in remembered
        }

    def of(self, task: str) -> Tensor:
        """See `client.loss_weights.LossWeights`."""
        return self._weights[task]

    def learn(self, losses: Mapping[str, Tensor], sizes: Mapping[str, Tensor]) -> None:
        """See `client.loss_weights.LossWeights`."""
        for task, loss in losses.items():
            self._first.setdefault(task, loss)
        tasks = [task for task in losses if task in sizes]
        if len(tasks) < 2:
            return
        tiny = torch.finfo(torch.float32).tiny
        norms = torch.stack([sizes[task] for task in tasks])
        weights = torch.stack([self._weights[task] for task in tasks])
        shares = torch.stack([losses[task] / self._first[task].clamp_min(tiny) for task in tasks])
        sizes_now = weights * norms
        target = sizes_now.mean() * (shares / shares.mean().clamp_min(tiny)) ** self._alpha
        slope = torch.sign(sizes_now - target) * norms / norms.mean().clamp_min(tiny)
        moved = (weights - self._rate * slope).clamp_min(LEAST_WEIGHT)
        self._weights.update(zip(tasks, moved.unbind(), strict=True))
        whole = torch.stack(list(self._weights.values())).sum()
        self._weights = {task: weight * len(self._weights) / whole for task, weight in self._weights.items()}

    def numbers(self, reports: Mapping[str, TaskReport]) -> dict[str, float]:  # noqa: ARG002  # the protocol's
        """See `client.loss_weights.LossWeights`."""
        return {f"loss:gradnorm:{task}": float(weight) for task, weight in self._weights.items()} | {
            f"loss:gradnorm-first:{task}": float(loss) for task, loss in self._first.items()
        }


def last_shared(slots: Iterable[Slot], tasks: frozenset[str]) -> frozenset[str]:
    """Ids of the last slots before the heads that all tasks share and train: experts, the pooler, or the highest layer.

    Where the tasks share neither, all slots outside the heads that they share; none where they share nothing.

    Args:
        slots: the client's parameters.
        tasks: those that it trains.
    """
    shared = [slot for slot in slots if tasks <= slot.trained_by and slot.spec.group != HEAD]
    experts = [slot for slot in shared if slot.spec.group.startswith(EXPERT)]
    if experts:
        level = max(expert_level(slot.spec.group) for slot in experts)
        return frozenset(slot.id for slot in experts if expert_level(slot.spec.group) == level)
    poolers = frozenset(slot.id for slot in shared if slot.spec.group == POOLER)
    highest = max((layer for slot in shared if (layer := layer_of(slot.spec.group)) is not None), default=None)
    last = frozenset(slot.id for slot in shared if highest is not None and layer_of(slot.spec.group) == highest)
    return poolers or last or frozenset(slot.id for slot in shared)
