"""What the gates of a model with experts did in a round, over all clients: for people and the history. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from common.messages import GateReport, TaskContribution


def gate_record(contributions: Mapping[str, Mapping[str, TaskContribution]]) -> dict[str, Any] | None:
    """What is kept of a round.

    Args:
        contributions: client id to what it did for each task.

    Returns:
        plain data; None where no client reported a gate::

            {"tasks": {task: {gate: {"experts": [group, ...],   in the order of `load`
                                     "load": [...],             mass over all clients of the task, sums to 1
                                     "entropy": nats,           mean over the examples
                                     "examples": n}}},
             "distances": [{"tasks": [a, b], "gates": [gate of a, gate of b], "distance": d}, ...],
             "experts": {group: load}}                          over all gates, sums to 1 for each layer of experts

        A distance is `jensen_shannon` of the loads of two gates of different tasks that weigh the same experts. A gate
        that gave no expert anything has a load of zeros, and no distance.
    """
    reports: dict[str, dict[str, list[tuple[GateReport, int]]]] = {}
    for _, done in sorted(contributions.items()):
        for task, contribution in done.items():
            for gate, report in contribution.gates.items():
                if contribution.num_examples:
                    by_gate = reports.setdefault(task, {}).setdefault(gate, [])
                    by_gate.append((report, contribution.num_examples))
    if not reports:
        return None
    masses = {
        task: {gate: _mass(report for report, _ in given) for gate, given in sorted(by_gate.items())}
        for task, by_gate in sorted(reports.items())
    }
    tasks = {
        task: {gate: _gate(mass, reports[task][gate]) for gate, mass in by_gate.items()}
        for task, by_gate in masses.items()
    }
    all_masses = [mass for by_gate in masses.values() for mass in by_gate.values()]
    return {"tasks": tasks, "distances": _distances(tasks), "experts": _expert_load(all_masses)}


def jensen_shannon(left: Sequence[float], right: Sequence[float]) -> float:
    """The Jensen-Shannon distance of two distributions: the root of the divergence to base 2, from 0 to 1.

    Args:
        left: (E,) at least 0, with the sum 1.
        right: (E,) likewise, over the same things in the same order.
    """
    from scipy.special import rel_entr

    middle = [(a + b) / 2 for a, b in zip(left, right, strict=True)]
    nats = math.fsum(rel_entr(left, middle)) / 2 + math.fsum(rel_entr(right, middle)) / 2
    # Of two that are almost equal it is below 0 by rounding.
    return min(1.0, math.sqrt(max(0.0, nats) / math.log(2)))


def in_words(record: Mapping[str, Any]) -> str:
    """One line for the log."""
    loads = record["experts"].values()
    parts = [f"loads of {len(loads)} experts from {min(loads):.3f} to {max(loads):.3f}"]
    for task, gates in record["tasks"].items():
        entropy = math.fsum(gate["entropy"] for gate in gates.values()) / len(gates)
        parts.append(f"{task} gate entropy {entropy:.3f}")
    if record["distances"]:
        furthest = max(record["distances"], key=lambda found: found["distance"])
        parts.append(f"furthest apart are the gates of {' and '.join(furthest['tasks'])} ({furthest['distance']:.3f})")
    return ", ".join(parts)


def _mass(reports: Iterable[GateReport]) -> dict[str, float]:
    """Expert to its mass over several clients."""
    parts: dict[str, list[float]] = {}
    for report in reports:
        for expert, mass in zip(report.experts, report.mass, strict=True):
            parts.setdefault(expert, []).append(mass)
    return {expert: math.fsum(masses) for expert, masses in parts.items()}


def _gate(mass: Mapping[str, float], reports: Sequence[tuple[GateReport, int]]) -> dict[str, Any]:
    examples = sum(count for _, count in reports)
    load = _normalised(mass)
    return {
        "experts": list(load),
        "load": list(load.values()),
        "entropy": max(0.0, math.fsum(report.entropy * count for report, count in reports) / examples),
        "examples": examples,
    }


def _normalised(mass: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(mass.values())
    return {expert: value / total if total else 0.0 for expert, value in mass.items()}


def _distances(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    found = []
    for one, other in combinations(tasks, 2):
        for gate, mine in tasks[one].items():
            for another, theirs in tasks[other].items():
                loads = [dict(zip(side["experts"], side["load"], strict=True)) for side in (mine, theirs)]
                if loads[0].keys() != loads[1].keys() or not all(any(load.values()) for load in loads):
                    continue
                distance = jensen_shannon(mine["load"], [loads[1][expert] for expert in loads[0]])
                found.append({"tasks": [one, other], "gates": [gate, another], "distance": distance})
    return found


def _expert_load(masses: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Each expert's share in the mass of its layer: of all experts that are weighed beside it, by one gate or by
    several that overlap."""
    layers: list[dict[str, float]] = []
    for mass in masses:
        beside = [layer for layer in layers if layer.keys() & mass.keys()]
        layers = [layer for layer in layers if not layer.keys() & mass.keys()]
        joined: dict[str, float] = {}
        for part in (*beside, mass):
            for expert, value in part.items():
                joined[expert] = joined.get(expert, 0.0) + value
        layers.append(joined)
    return {expert: load for layer in layers for expert, load in _normalised(layer).items()}
