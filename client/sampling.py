"""How a client of several tasks shares a round among them: each task's share, and whole numbers that add up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import Tensor

from common.metrics import Evaluation
from common.training import Position, TrainSettings

if TYPE_CHECKING:
    from common.tasks import TaskSpec

#: The part of a round that `performance` shares evenly, so that a task that is nearly perfect is not forgotten.
EVEN_PART: Final = 0.2
#: How far `annealed` goes from proportional (0) to even (1) by the last round.
ANNEALED_BY: Final = 0.8


def task_shares(
    settings: TrainSettings,
    sizes: Mapping[str, int],
    position: Position,
    weakness: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Each task's share of the round, all positive, summing to 1, in the order of `sizes`.

    With n the size of a task:

    * `proportional` n; `even` 1; `sqrt` n^(1/2);
    * `temperature` n^(1/T): T = 5 as in multilingual translation, Arivazhagan et al. 2019 (arXiv 1907.05019);
    * `annealed` n^a, a = 1 - 0.8 (e - 1) / (E - 1) in round e of E: Stickland & Murray 2019 (arXiv 1902.02671),
      section 4.1, with rounds for their epochs;
    * `performance`: a fifth evenly, the rest by weakness, after Gottumukkala et al. 2020 (ACL, 2020.acl-main.86), who
      sample by the gap to a single-task model; here the gap is the one to a perfect score. A task of unknown
      weakness counts as the average of the others.

    Args:
        settings: which of these.
        sizes: task to its batches (or examples) per epoch, at least 1.
        position: the round.
        weakness: task to how weak the received model is, 0..1, where known; for `performance` only.
    """
    exponent = {"proportional": 1.0, "even": 0.0, "sqrt": 0.5, "temperature": 1 / settings.sampling_temperature}
    match settings.task_sampling:
        case "performance":
            return _by_weakness(list(sizes), weakness or {})
        case "annealed":
            rounds = max(1, position.target_rounds - 1)
            power = 1 - ANNEALED_BY * (position.round - 1) / rounds
        case other:
            power = exponent[other]
    return _normalised({task: float(size) ** power for task, size in sizes.items()})


def weakness_of(task: TaskSpec, evaluation: Evaluation, labels: Tensor) -> float:
    """How far a result is from a perfect one by the task's primary metric: 0 is perfect, 1 as bad as guessing or worse.

    ``1 - score`` for metrics with a best score of 1 (a negative correlation counts as 0); for `mse` and `mae` the
    error as a share of the one that a constant makes: the labels' variance, and their mean distance from the median.

    Args:
        task: names the metric.
        evaluation: holds it.
        labels: ``(N,)``, the labels that it was computed on.
    """
    value = evaluation.metrics[task.primary_metric]
    match task.primary_metric:
        case "mse":
            return _share(value, float(labels.double().var(unbiased=False)))
        case "mae":
            return _share(value, float((labels.double() - labels.double().median()).abs().mean()))
        case _:
            return min(1.0, max(0.0, 1 - value))


def share_steps(total: int, shares: Mapping[str, float], rng: np.random.Generator) -> dict[str, int]:
    """Share a round's steps, or its examples, among tasks.

    Each task gets its exact share rounded up or down, at random but unbiased (systematic sampling), so that with
    fewer steps than tasks no task is left out in every round. Shares that are whole numbers are met exactly:
    `proportional` with whole epochs gives each task its own batches.

    Args:
        total: steps to share.
        shares: task to its part, positive; they need not sum to 1.
        rng: one number is drawn.

    Returns:
        task to steps, summing to `total`.
    """
    whole, offset = math.fsum(shares.values()), rng.random()
    steps: dict[str, int] = {}
    reached, before = 0.0, 0
    for task, part in shares.items():
        reached += part
        # Rounded: a share of 3/7 times 7 must not fall just below 3.
        upto = min(total, math.floor(round(total * reached / whole, 9) + offset))
        steps[task], before = upto - before, upto
    steps[next(reversed(steps))] += total - before  # rounding of the last sum, if any
    return steps


def _by_weakness(tasks: list[str], weakness: Mapping[str, float]) -> dict[str, float]:
    known = [weakness[task] for task in tasks if task in weakness]
    average = math.fsum(known) / len(known) if known else 1.0
    weak = {task: weakness.get(task, average) for task in tasks}
    if not any(weak.values()):
        weak = dict.fromkeys(tasks, 1.0)
    even = EVEN_PART / len(tasks)
    return {task: even + (1 - EVEN_PART) * part for task, part in _normalised(weak).items()}


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    whole = math.fsum(weights.values())
    return {task: weight / whole for task, weight in weights.items()}


def _share(error: float, of_a_constant: float) -> float:
    if of_a_constant == 0:
        return 1.0 if error > 0 else 0.0
    return min(1.0, error / of_a_constant)
