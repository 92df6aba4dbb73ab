"""How differently tasks use the experts of one model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from torch import Tensor

from common.families.tabular_family import TabularFamily
from server.gate_records import jensen_shannon


def gate_distances(family: TabularFamily, gates: Mapping[str, Mapping[str, Tensor]]) -> list[float] | None:
    """The Jensen-Shannon distance between tasks' mean gates, from 0 (alike) to 1 (no expert in common), of M models.

    Gates of two tasks are compared level by level, over the experts of both: one that a gate does not weigh has no
    weight. A gate that tasks share is no difference between them. The mean over levels and pairs of tasks.

    Args:
        family: of the models.
        gates: task to gate to (M, E), the mean over rows of the experts' weights.

    Returns:
        M distances; None where no task has a gate of its own.
    """
    model = family.build(tuple(family.tasks))
    distances: list[list[float]] = []
    for one, other in combinations(gates, 2):
        experts = {task: model.gates(task) for task in (one, other)}
        own = [
            [name for name in experts[task] if name not in experts[rest]] for task, rest in ((one, other), (other, one))
        ]
        for mine, theirs in zip(*own, strict=True):
            all_experts = list(dict.fromkeys([*experts[one][mine], *experts[other][theirs]]))
            left = _spread_over(all_experts, experts[one][mine], gates[one][mine])
            right = _spread_over(all_experts, experts[other][theirs], gates[other][theirs])
            distances.append([jensen_shannon(a, b) for a, b in zip(left, right, strict=True)])
    if not distances:
        return None
    return [sum(of_model) / len(distances) for of_model in zip(*distances, strict=True)]


def _spread_over(all_experts: list[str], weighed: tuple[str, ...], weights: Tensor) -> list[list[float]]:
    """The weights (M, E) over all experts, with zeros for those that are not weighed, and the sum 1."""
    rows: list[list[float]] = (weights.double() / weights.double().sum(dim=1, keepdim=True)).tolist()
    return [[dict(zip(weighed, row, strict=True)).get(expert, 0.0) for expert in all_experts] for row in rows]
