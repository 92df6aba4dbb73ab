"""FedNova (Wang et al. 2020, arXiv 2007.07481): clients that took many local steps don't count for more by that.

Plain averaging lets a client that took ten times the steps move the model about ten times as far, so the model comes to
rest where a different objective than the configured one is least. Here each delta is divided by its effective number of
steps ``a_k`` before it is weighed, and what they make together is multiplied by their weighted mean, ``tau_eff``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.messages import TaskContribution
from common.plan import Slot
from common.training import TrainSettings


def effective_steps(steps: int, settings: TrainSettings) -> float:
    """``||a_k||_1``: how far a round goes for each unit of gradient, in learning rates.

    The number of steps itself for plain SGD, and for AdamW, whose step does not grow with the gradient. With momentum
    ``rho`` it is ``(steps - rho (1 - rho^steps) / (1 - rho)) / (1 - rho)``, with a proximal term
    ``(1 - (1 - eta mu)^steps) / (eta mu)`` (section 4 of the paper); with both, what the recursion of both gives. The
    learning rate is taken as its peak: what schedule and layer make of it is much the same for all clients.

    Args:
        steps: optimiser steps, at least 1.
        settings: how they were trained.
    """
    rho = settings.momentum
    pull = settings.learning_rate * settings.proximal if settings.optimizer == "sgd" else 0.0
    if not rho and not pull:
        return float(steps)
    if not rho:
        return (1.0 - (1.0 - pull) ** steps) / pull
    if not pull:
        return (steps - rho * (1.0 - rho**steps) / (1.0 - rho)) / (1.0 - rho)
    distance = velocity = 0.0
    for _ in range(steps):
        velocity = rho * velocity + 1.0 - pull * distance
        distance += velocity
    return distance


def steps_in_slot(slot: Slot, contributions: Mapping[str, TaskContribution], *, mixed: bool = False) -> int:
    """The optimiser steps of one client that moved a slot, at least 1.

    Args:
        slot: only tasks in its `trained_by` count.
        contributions: task to what was done for it. No step is believed that has no example.
        mixed: a step holds examples of several tasks and is reported for each: the most of any task counts, and not
            their sum.
    """
    counts = [min(done.num_steps, done.num_examples) for task, done in contributions.items() if task in slot.trained_by]
    return max(1, max(counts, default=0) if mixed else sum(counts))


def step_factors(weights: Mapping[str, float], effective: Mapping[str, float]) -> dict[str, float]:
    """Client id to the factor of its delta: ``tau_eff / a_k`` with ``tau_eff = sum_k p_k a_k``.

    Args:
        weights: client id to weight, above 0; ``p_k`` is its share of their sum.
        effective: client id to ``a_k``, above 0.

    Returns:
        exactly 1 for everybody where all took equally many steps: then this is federated averaging, to the bit.
    """
    taken = {client_id: effective[client_id] for client_id in weights}
    if len(set(taken.values())) <= 1:
        return dict.fromkeys(taken, 1.0)
    tau_eff = math.fsum(weights[c] * taken[c] for c in taken) / math.fsum(weights.values())
    return {client_id: tau_eff / steps for client_id, steps in taken.items()}
