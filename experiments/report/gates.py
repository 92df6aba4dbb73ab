"""The section on gates: which experts each task uses, how sharply, and how far tasks are apart."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.groups import Group
from experiments.report.markup import Figure, Section, Table, Value, number, plot_text
from experiments.report.plots import SCALE, axis, finite, layout, look, steps
from experiments.report.results import GateState, Point
from server.gate_records import jensen_shannon

INTRODUCTION = (
    "A gate gives every expert a weight for every row; the weights of a row sum to one. A row of the heat-map is the "
    "mean over rows of the data: a gate that spreads its weight evenly shares everything, tasks with different rows "
    "use different experts. Experts have no order, and their numbers mean nothing across seeds: so the heat-map is of "
    "one run, that with the lowest seed.",
    "The entropy says how sharply a gate chooses within a row: 0 is one expert, the logarithm of the number of experts "
    "is all alike. The Jensen-Shannon distance compares the mean weights of two tasks: 0 where they are equal, 1 where "
    "they have no expert in common.",
)
#: Distances below are rounding: tasks that have one gate and the same rows are no distance apart.
LEAST = 1e-6


def gates_section(groups: Sequence[Group]) -> Section | None:
    """Gates of every group that has them; None: none has."""
    parts: list[Figure | Table] = []
    used: list[str] = []
    for position, group in enumerate(groups):
        runs = [(name, run) for name, run in group.runs if run.history and run.history[-1].gates]
        if not runs:
            continue
        used += [name for name, _ in runs]
        first = runs[0][1]
        parts.append(_load_figure(f"gates-{position}-load", f"{group.label}, seed {first.seed}", first.history[-1]))
        histories = [run.history for _, run in runs]
        parts.append(_course_figure(f"gates-{position}-course", group.label, histories, "entropy"))
        if any(max(gate_distances(p).values(), default=0) > LEAST for history in histories for p in history):
            parts.append(_course_figure(f"gates-{position}-distance", group.label, histories, "distance"))
    if not parts:
        return None
    return Section("gates", "What the gates of each task choose", INTRODUCTION, tuple(parts), tuple(used))


def gate_distances(point: Point) -> dict[str, float]:
    """Jensen-Shannon distance (base 2: 0 to 1) between the mean weights of every two tasks' gates.

    As the result has them. Where it has none, two gates are compared that weigh the same experts: they have one name
    (the gate of OMoE, the shared gate of a level of PLE), or each is named after its task (MMoE).

    Returns:
        Both tasks, and the gate where it has a name of its own, to the distance.
    """
    if point.gate_distances:
        told = {}
        for known in point.gate_distances:
            gates = "" if known.gates == known.tasks else f", {' and '.join(dict.fromkeys(known.gates))}"
            told[f"{' and '.join(known.tasks)}{gates}"] = known.distance
        return told
    found = {}
    for (one, its), (other, others) in itertools.combinations(point.gates.items(), 2):
        pairs = {f", {name}": (its[name], others[name]) for name in its.keys() & others.keys()}
        if one in its and other in others:
            pairs[""] = (its[one], others[other])
        for name, (a, b) in sorted(pairs.items()):
            if len(a.load) == len(b.load) and sum(a.load) > 0 and sum(b.load) > 0:
                found[f"{one} and {other}{name}"] = jensen_shannon(_shares(a.load), _shares(b.load))
    return found


def _shares(load: Sequence[float]) -> list[float]:
    """Scaled to the sum 1, which rounding in a file may have changed."""
    return [value / sum(load) for value in load]


def _load_figure(name: str, label: str, point: Point) -> Figure:
    rows = [(f"{task}: {gate}", state) for task, gates in point.gates.items() for gate, state in gates.items()]
    loads = [dict(zip(_experts(state), finite(state.load), strict=True)) for _, state in rows]
    experts = list(dict.fromkeys(name for load in loads for name in load))
    padded = [[load.get(name) for name in experts] for load in loads]
    trace = {
        "type": "heatmap",
        "x": [plot_text(name) for name in experts],
        "y": [plot_text(row) for row, _ in rows],
        "z": padded,
        "zmin": 0,
        "zmax": max(value for row in padded for value in row if value is not None),
        "colorscale": SCALE,
        "colorbar": {"title": {"text": "mean weight"}},
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{y}<br>expert %{x}: %{z:.3f}<extra></extra>",
    }
    vertical = axis("", type="category", autorange="reversed", showgrid=False)
    table_rows: tuple[tuple[Value, ...], ...] = tuple(
        (row, *values, state.entropy) for (row, state), values in zip(rows, padded, strict=True)
    )
    return Figure(
        name,
        f"Mean weight that each gate gives its experts at the end of training: {label}. An empty field is an expert "
        "that the gate does not weigh.",
        (trace,),
        layout(axis("expert", type="category", showgrid=False), vertical, height=170 + max(70, 34 * len(rows))),
        Table(f"Mean weights and entropy in nats: {label}", ("gate", *experts, "entropy"), table_rows),
    )


def _experts(state: GateState) -> list[str]:
    """What the experts are called: by number where they have no name, or not one each."""
    if not len(state.experts) == len(state.load) == len(set(state.experts)):
        return [str(number) for number in range(len(state.load))]
    return [name.removeprefix("expert.") for name in state.experts]


def _course_figure(name: str, label: str, histories: Sequence[Sequence[Point]], quantity: str) -> Figure:
    """Entropy, or distance, over epochs or rounds: the mean over the runs."""
    unit = "round" if histories[0][0].round is not None else "epoch"
    courses: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in itertools.chain.from_iterable(histories):
        values = _entropies(point.gates) if quantity == "entropy" else gate_distances(point)
        for series, value in values.items():
            if math.isfinite(value):
                courses[series][point.at].append(value)
    traces: list[dict[str, Any]] = []
    rows: list[tuple[Value, ...]] = []
    for position, (series, course) in enumerate(courses.items()):
        means = {at: statistics.fmean(values) for at, values in sorted(course.items())}
        traces.append(
            {
                "type": "scatter",
                "name": plot_text(series),
                "showlegend": True,
                "x": list(means),
                "y": list(means.values()),
                "hovertemplate": f"{unit} %{{x}}: %{{y:.4f}}",
                **look(position),
            }
        )
        first, last = next(iter(means)), next(reversed(means))
        rows.append((series, means[first], means[last], min(means.values()), max(means.values()), len(course[last])))
    vertical = axis("entropy in nats") if quantity == "entropy" else axis("Jensen-Shannon distance", rangemode="tozero")
    what = "Entropy of each gate per row, in nats" if quantity == "entropy" else "Distance between the tasks' gates"
    most = max((len(s.load) for h in histories for g in h[-1].gates.values() for s in g.values()), default=1)
    limit = f" The most that {most} experts allow is {number(math.log(most), 2)}." if quantity == "entropy" else ""
    return Figure(
        name,
        f"{what}, over the {unit}s, mean over {len(histories)} run{'s' * (len(histories) > 1)}: {label}.{limit}",
        tuple(traces),
        layout(steps(unit, max((max(course) for course in courses.values()), default=1)), vertical, 340),
        Table(
            f"{what}: {label}", ("series", f"first {unit}", f"last {unit}", "lowest", "highest", "runs"), tuple(rows)
        ),
    )


def _entropies(gates: Mapping[str, Mapping[str, GateState]]) -> dict[str, float]:
    return {f"{task}: {gate}": state.entropy for task, own in gates.items() for gate, state in own.items()}
