"""What clients say of their gates, before it weighs anything: pure checks, each refusal says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from typing import Final

from common.errors import UpdateRejected
from common.messages import GateReport, UpdateHeader
from common.plan import SharingPlan
from common.selectors import EXPERT
from server.routing import is_expert

#: The weights of an example add up to 1, up to the rounding of sums of many of them in float32.
MOST_PER_EXAMPLE: Final = 1.001
#: Below 0 by rounding.
_LEAST_ENTROPY: Final = -1e-5


def check_gates(header: UpdateHeader, plan: SharingPlan, *, needed: bool) -> None:
    """Refuse an announced update whose gate reports can't be, or are missing.

    Args:
        header: what the client announces; fits the plan (`server.admission.check_update`).
        plan: the sharing plan of the round that the update is of.
        needed: experts are weighed by these reports.

    Raises:
        UpdateRejected: `malformed`, with task and gate.
    """
    for task, done in sorted(header.tasks.items()):
        used = plan.blueprint.used_by(task) if done.gates else ()
        known = {spec.group for spec in used if spec.group.startswith(EXPERT)}
        for gate, report in sorted(done.gates.items()):
            if wrong := _wrong_with(report, done.num_examples, known):
                raise UpdateRejected("malformed", f"gate {gate!r} of task {task!r}: {wrong}")
    if needed:
        _require_reports(header, plan)


def _wrong_with(report: GateReport, examples: int, known: AbstractSet[str]) -> str:
    if not report.experts:
        return "it weighs no expert"
    if foreign := sorted(set(report.experts) - known):
        return f"it weighs {foreign[0]!r}, which is no group of parameters of an expert that the task uses"
    if len(set(report.experts)) != len(report.experts):
        return "it lists an expert twice"
    if len(report.mass) != len(report.experts):
        return f"{len(report.experts)} experts, but the mass of {len(report.mass)}"
    if not all(math.isfinite(mass) and mass >= 0 for mass in report.mass):
        return f"mass is finite and at least 0 (found: {min(report.mass)})"
    # An example's weights, which add up to 1 at most, have an entropy of 1/e at most for each expert.
    if not _LEAST_ENTROPY <= report.entropy <= len(report.experts):
        return f"the entropy of {len(report.experts)} weights can't be {report.entropy}"
    # Two that are finite may add up to what is not.
    if (total := sum(report.mass)) > examples * MOST_PER_EXAMPLE:
        return f"its mass of {total:g} is more than its {examples} examples can give"
    return ""


def _require_reports(header: UpdateHeader, plan: SharingPlan) -> None:
    experts = [slot for tensor in header.tensors if (slot := plan.by_id.get(tensor.slot)) and is_expert(slot)]
    for task, done in sorted(header.tasks.items()):
        trained = {slot.spec.group for slot in experts if task in slot.trained_by} if done.num_examples else set[str]()
        if missing := sorted(trained - {expert for report in done.gates.values() for expert in report.experts}):
            raise UpdateRejected(
                "malformed",
                f"no gate of task {task!r} reports on {missing[0]}: this run weighs experts by what the clients' gates "
                "gave them (federation.expert_weights: routing), which takes a client that reports it",
            )
