"""Tasks weigh before clients do: the weight of each client's delta in each slot.

``theta += sum_t omega_t sum_{k in t} (n_k / N_t) delta_k`` over the tasks present in the round, with
``omega`` normalised over those of them that may train the slot. Weighting by examples alone would give
a small task next to nothing (STS-B about 1 % of an encoder shared with SST-2 and QQP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from common.plan import Slot

TaskWeights = Literal["uniform", "examples", "sqrt_examples"] | Mapping[str, float]


TaskStep = Literal["mean", "sum"]


def slot_weights(
    slot: Slot,
    examples: Mapping[str, Mapping[str, int]],
    task_weights: TaskWeights = "uniform",
    step: TaskStep = "mean",
) -> dict[str, float]:
    """The weight of each client's delta in one slot, in client order.

    Args:
        slot: only tasks in its `trained_by` count.
        examples: client id to {task: examples seen this round}; a task without examples is absent.
        task_weights: the rule for omega, or a weight per task.
        step: ``mean`` of the present tasks' moves, or their ``sum`` (the mean times their number): as
            far as one machine that trains the tasks in turn would go. The same for a slot of one task.

    Returns:
        client id to weight, summing to 1, or to the number of present tasks. Empty when no client trained
        the slot: it keeps its value.
    """
    totals: dict[str, int] = {}
    for client_id in sorted(examples):
        for task, count in sorted(examples[client_id].items()):
            if count > 0 and task in slot.trained_by:
                totals[task] = totals.get(task, 0) + count
    if not totals:
        return {}
    raw = {task: omega(task, total, task_weights) for task, total in sorted(totals.items())}
    norm = math.fsum(raw.values()) / (len(raw) if step == "sum" else 1)
    weights: dict[str, float] = {}
    for client_id in sorted(examples):
        parts = [
            raw[task] / norm * (count / totals[task])
            for task, count in sorted(examples[client_id].items())
            if count > 0 and task in totals
        ]
        if parts:
            weights[client_id] = math.fsum(parts)
    return weights


def omega(task: str, total: int, rule: TaskWeights) -> float:
    """A task's weight before it is normalised.

    Args:
        task: its name.
        total: its examples in the round over all clients, above 0.
        rule: the rule, or a weight per task.
    """
    if isinstance(rule, Mapping):
        return rule[task]
    match rule:
        case "uniform":
            return 1.0
        case "examples":
            return float(total)
        case "sqrt_examples":
            return math.sqrt(total)
