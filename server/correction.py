"""What `federation.expert_weights` and `federation.correction` make of the weights of a round's updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common.control_variates import is_control
from common.messages import TaskContribution
from common.plan import Slot
from common.training import TrainSettings, holds_several
from server.fednova import effective_steps, step_factors, steps_in_slot
from server.scaffold import control_weights
from server.strategy import Correction

#: A slot and its weights by client, at least one, to those that are used; none: the slot keeps its value.
Reweigh = Callable[[Slot, Mapping[str, float]], Mapping[str, float]]


def reweighing(
    correction: Correction,
    training: Mapping[str, TrainSettings],
    contributions: Mapping[str, Mapping[str, TaskContribution]],
    present: Mapping[str, frozenset[str]],
    experts: Reweigh | None = None,
) -> Reweigh:
    """How the weights of one round are changed.

    Args:
        correction: the method.
        training: client id to how it was told to train, for each client that contributes.
        contributions: client id to what it did for each task, likewise.
        present: client id to tasks, of the clients that were connected when the round began.
        experts: how experts are weighed; None: as everything else. The correction is made of what comes out of it.
    """

    def scaffold(slot: Slot, weights: Mapping[str, float]) -> Mapping[str, float]:
        return control_weights(slot, weights, present) if is_control(slot.spec) else weights

    def steps_of(slot: Slot, client_id: str) -> int:
        done = contributions[client_id]
        return steps_in_slot(slot, done, mixed=holds_several(training[client_id], done))

    def fednova(slot: Slot, weights: Mapping[str, float]) -> Mapping[str, float]:
        if slot.spec.kind != "parameter":
            return weights  # running means are no sums of steps
        effective = {c: effective_steps(steps_of(slot, c), training[c]) for c in weights}
        factors = step_factors(weights, effective)
        return {client_id: weight * factors[client_id] for client_id, weight in weights.items()}

    corrected = {"none": _as_they_are, "scaffold": scaffold, "fednova": fednova}[correction]
    if experts is None:
        return corrected
    weighed = experts

    def both(slot: Slot, weights: Mapping[str, float]) -> Mapping[str, float]:
        routed = weighed(slot, weights)
        return corrected(slot, routed) if routed else routed

    return both


def _as_they_are(slot: Slot, weights: Mapping[str, float]) -> Mapping[str, float]:  # noqa: ARG001
    return weights
