"""Experts weigh by routing: a client's delta of an expert counts by how much of its data the gates gave that expert.

Weighted by examples, a client whose gates hardly ever choose an expert would hold that expert back as much as one whose
data it is made for moves it. Here the mass that the gates of task t gave expert e on client k, ``m_kte`` (the sum of
their weights over the examples trained on), stands where the number of examples stands in `server.weights`: ``w_k(e)``
is proportional to ``sum_t omega_t m_kte / N_t``, with ``N_t`` the task's examples in the round over all clients. Gates
that weigh all experts alike give the weights by examples. (Experts and gates: MMoE, Ma et al. 2018, KDD; PLE, Tang et
al. 2020, RecSys. Weighing by mass is our own.) Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from common.messages import GateReport, TaskContribution
from common.plan import Slot
from common.selectors import EXPERT
from server.correction import Reweigh
from server.weights import TaskWeights, omega

_OWN_EXPERT: Final = re.compile(r"expert\.\d+\.own\.(.+)\.\d+")
_SHARED_GATE: Final = re.compile(r"\d+\.shared")


def is_expert(slot: Slot) -> bool:
    """Whether a slot is a part of an expert (or the control variate of one)."""
    return slot.spec.group.startswith(EXPERT)


def by_routing(contributions: Mapping[str, Mapping[str, TaskContribution]], task_weights: TaskWeights) -> Reweigh:
    """What routing makes of the weights of one round's updates; slots that are no expert's keep theirs.

    Args:
        contributions: client id to what it did for each task, for each client that contributes.
        task_weights: how tasks weigh in a slot they share.
    """

    def reweigh(slot: Slot, weights: Mapping[str, float]) -> Mapping[str, float]:
        return routing_weights(slot, weights, contributions, task_weights) if is_expert(slot) else weights

    return reweigh


def routing_weights(
    slot: Slot,
    weights: Mapping[str, float],
    contributions: Mapping[str, Mapping[str, TaskContribution]],
    task_weights: TaskWeights = "uniform",
) -> dict[str, float]:
    """The weight of each client's delta in one slot of an expert, in client order.

    Args:
        slot: only tasks in its `trained_by` count.
        weights: client id to its weight by examples, of the clients whose updates hold the slot; what they add up to is
            what the new ones add up to.
        contributions: client id to what it did for each task, for each client of the round, those without the slot too.
        task_weights: the rule for omega, or a weight per task.

    Returns:
        client id to weight, of the clients that gave the expert any mass. Empty where nobody did: an expert that nobody
        used keeps its value.
    """
    totals: dict[str, int] = {}
    for done in contributions.values():
        for task, contribution in done.items():
            if task in slot.trained_by and contribution.num_examples:
                totals[task] = totals.get(task, 0) + contribution.num_examples
    per_mass = {task: omega(task, total, task_weights) / total for task, total in totals.items()}
    shares: dict[str, float] = {}
    for client_id in sorted(weights):
        masses = [
            per_mass[task] * expert_mass(slot.spec.group, task, contribution.gates, slot.trained_by)
            for task, contribution in sorted(contributions[client_id].items())
            if task in per_mass and contribution.num_examples
        ]
        if (share := math.fsum(masses)) > 0:
            shares[client_id] = share
    norm, whole = math.fsum(shares.values()), math.fsum(weights.values())
    return {client_id: whole * (share / norm) for client_id, share in shares.items()}


def expert_mass(
    expert: str, task: str, gates: Mapping[str, GateReport], trained_by: frozenset[str] | None = None
) -> float:
    """The mass that the gates gave an expert for one task's examples, over all gates that weigh it.

    In PLE a task's own experts (``expert.L.own.TASK.N``) take it from their own task's gate and examples alone. Below
    the top level the shared gates (``L.shared``) weigh them for the examples of every task, and with three levels or
    more other tasks' examples pass their task's gate, too: that trains them, on clients of any task, but has no say in
    them. Where that task has no part in the slot (`federation.mode: per_task`: each task has a copy of all experts)
    nobody else has a say, and the mass of all gates counts.

    Args:
        expert: the blueprint group of the expert.
        task: the task.
        gates: gate to its report, of that task.
        trained_by: the tasks that may train the slot; None: all.
    """
    own = _OWN_EXPERT.fullmatch(expert)
    owner = None if own is None or (trained_by is not None and own[1] not in trained_by) else own[1]
    if owner is not None and owner != task:
        return 0.0
    return math.fsum(
        mass
        for gate, report in sorted(gates.items())
        if owner is None or not _SHARED_GATE.fullmatch(gate)
        for listed, mass in zip(report.experts, report.mass, strict=True)
        if listed == expert
    )
