"""How much each task's loss counts in a client of several tasks: fixed, or found while training.

What a method has learnt is the client's own: it never travels, and goes from round to round as plain numbers in
`client.memory.Memory.numbers`, under names such as ``loss:uncertainty:sst2``. Weights are scalars on the device, so
that no step waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from client.gradnorm import GradNormWeights
from common.training import TrainSettings

if TYPE_CHECKING:
    from client.tally import TaskReport
    from common.tasks import TaskSpec

#: Learnt log variances stay within this bound, so weights within about a thousandth and a thousandfold.
LOG_BOUND: Final = 7.0


class LossWeights(Protocol):
    """One method."""

    def of(self, task: str) -> Tensor | float:
        """The weight of a task's mean loss in the step at hand."""

    def learn(self, losses: Mapping[str, Tensor], sizes: Mapping[str, Tensor]) -> None:
        """Take notice of a step, after its gradient is known.

        Args:
            losses: task of the step to its mean loss, a scalar without gradient.
            sizes: task to the norm of its loss's unweighted gradient at the last shared layer; empty where steps
                are not taken task by task.
        """

    def numbers(self, reports: Mapping[str, TaskReport]) -> dict[str, float]:
        """What to remember after the round, given what was done in it."""


def build_loss_weights(
    settings: TrainSettings, tasks: Mapping[str, TaskSpec], remembered: Mapping[str, float], device: torch.device
) -> LossWeights:
    """The method that the settings name. A single task needs no balance: it keeps its fixed weight.

    Args:
        settings: which method, and its parameters.
        tasks: those that the client trains.
        remembered: the client's numbers after its last round.
        device: where losses are.
    """
    if len(tasks) < 2:
        return FixedWeights(settings.loss_weights)
    match settings.loss_weighting:
        case "fixed":
            return FixedWeights(settings.loss_weights)
        case "uncertainty":
            return UncertaintyWeights(tasks, settings.loss_weight_rate, remembered, device)
        case "dwa":
            return DynamicAverageWeights(list(tasks), settings.dwa_temperature, remembered)
        case "gradnorm":
            return GradNormWeights(list(tasks), settings.gradnorm_alpha, settings.loss_weight_rate, remembered, device)


class FixedWeights:
    """Weights from the configuration, 1 where it names none."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights

    def of(self, task: str) -> float:
        """See `LossWeights`."""
        return self._weights.get(task, 1.0)

    def learn(self, losses: Mapping[str, Tensor], sizes: Mapping[str, Tensor]) -> None:
        """See `LossWeights`: nothing to learn."""

    def numbers(self, reports: Mapping[str, TaskReport]) -> dict[str, float]:  # noqa: ARG002  # the protocol's
        """See `LossWeights`: nothing to remember."""
        return {}


class UncertaintyWeights:
    """Homoscedastic uncertainty: Kendall, Gal & Cipolla 2018 (arXiv 1705.07115), equations 7 to 10.

    Each task has a log variance s, 0 at first, learnt together with the model: the step minimises the sum of
    ``c exp(-s) L + s / 2`` with c = 1 for a classification and 1/2 for a regression, so a task's weight is
    ``c exp(-s)``, and ``s / 2`` keeps the weights from falling to nothing. s takes plain gradient steps of its own
    rate, each at most the rate itself, as a loss of large unit would throw it about; it stays within +-7.

    Args:
        tasks: the client's.
        rate: learning rate of s.
        remembered: numbers, ``loss:uncertainty:TASK`` among them.
        device: where losses are.
    """

    def __init__(
        self, tasks: Mapping[str, TaskSpec], rate: float, remembered: Mapping[str, float], device: torch.device
    ) -> None:
        self._scale = {task: 0.5 if spec.kind == "regression" else 1.0 for task, spec in tasks.items()}
        self._rate = rate
        self._log_variance = {
            task: torch.tensor(remembered.get(self._name(task), 0.0), device=device) for task in tasks
        }

    def of(self, task: str) -> Tensor:
        """See `LossWeights`."""
        return self._scale[task] * torch.exp(-self._log_variance[task])

    def learn(self, losses: Mapping[str, Tensor], sizes: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        """See `LossWeights`; of the step's tasks only."""
        for task, loss in losses.items():
            slope = (0.5 - self.of(task) * loss).clamp(-1, 1)
            self._log_variance[task] = (self._log_variance[task] - self._rate * slope).clamp(-LOG_BOUND, LOG_BOUND)

    def numbers(self, reports: Mapping[str, TaskReport]) -> dict[str, float]:  # noqa: ARG002
        """See `LossWeights`."""
        return {self._name(task): float(value) for task, value in self._log_variance.items()}

    @staticmethod
    def _name(task: str) -> str:
        return f"loss:uncertainty:{task}"


class DynamicAverageWeights:
    """Dynamic weight average: Liu, Johns & Davison 2019 (arXiv 1803.10704), equation 7, with rounds for their epochs.

    A task's weight is ``K exp(r / T) / sum exp(r / T)`` over the K tasks, r being its mean training loss of the last
    round that the client trained over that of the one before; r is 1 until both are known. The same all round long.

    Args:
        tasks: the client's.
        temperature: T.
        remembered: numbers, ``loss:dwa:TASK`` (last) and ``loss:dwa-before:TASK`` among them.
    """

    def __init__(self, tasks: list[str], temperature: float, remembered: Mapping[str, float]) -> None:
        self._last = {task: remembered[f"loss:dwa:{task}"] for task in tasks if f"loss:dwa:{task}" in remembered}
        before = {task: remembered.get(f"loss:dwa-before:{task}", 0.0) for task in tasks}
        ratios = {task: self._last[task] / before[task] if before[task] > 0 else 1.0 for task in tasks}
        most = max(ratios.values())
        powers = {task: math.exp((ratio - most) / temperature) for task, ratio in ratios.items()}
        self._weights = {task: len(tasks) * power / math.fsum(powers.values()) for task, power in powers.items()}

    def of(self, task: str) -> float:
        """See `LossWeights`."""
        return self._weights[task]

    def learn(self, losses: Mapping[str, Tensor], sizes: Mapping[str, Tensor]) -> None:
        """See `LossWeights`: nothing within a round."""

    def numbers(self, reports: Mapping[str, TaskReport]) -> dict[str, float]:
        """See `LossWeights`; a task that took no step keeps what it had."""
        moved = {f"loss:dwa-before:{task}": self._last[task] for task in reports if task in self._last}
        return moved | {f"loss:dwa:{task}": report.loss for task, report in reports.items()}
