"""The section on experts: which inputs go to which."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.groups import Group
from experiments.report.markup import Figure, Section, Table, Value, plot_text
from experiments.report.plots import SCALE, axis, layout
from experiments.report.results import ExpertUse, TrainResult

INTRODUCTION = (
    "For every value of every input column: the mean weight that a gate gives an expert on the rows that have the "
    "value, divided by its mean weight over all rows. A lift of 2 says that the expert has twice its usual weight "
    "there. Numeric columns are cut at their quartiles; values of few rows are left out. The values with the highest "
    "lift of every expert are shown, for the run with the lowest seed: other seeds find other experts.",
    "Inputs go together (who is a child is never married, and earns nothing), so a value in the list need not be what "
    "the gate looks at. A lift near 1 throughout says that the experts differ in what they compute, not in whom.",
)
#: How many of an expert's values the plot shows; the table has all that the file has.
SHOWN = 3


def specialisation_section(groups: Sequence[Group]) -> Section | None:
    """A heat-map and a table per gate of every group that has them; None: none has."""
    parts: list[Figure | Table] = []
    used: list[str] = []
    for position, group in enumerate(groups):
        known = [(name, run) for name, run in group.runs if run.specialisation]
        if not known:
            continue
        name, run = known[0]
        used.append(name)
        for place, (tasks, gate, experts) in enumerate(_gates(run)):
            label = f"{group.label}, seed {run.seed}, gate {gate} of {' and '.join(tasks)}"
            parts.append(_lift_figure(f"experts-{position}-{place}", label, experts))
    if not parts:
        return None
    return Section("experts", "Which inputs go to which expert", INTRODUCTION, tuple(parts), tuple(used))


def _gates(run: TrainResult) -> list[tuple[list[str], str, list[ExpertUse]]]:
    """The gates that prefer anything, each once: tasks with the same rows may share one."""
    found: list[tuple[list[str], str, list[ExpertUse]]] = []
    for task, gates in run.specialisation.items():
        for gate, use in gates.items():
            same = next((tasks for tasks, name, experts in found if (name, experts) == (gate, use.experts)), None)
            if same is not None:
                same.append(task)
            elif any(expert.top for expert in use.experts):
                found.append(([task], gate, use.experts))
    return found


def _lift_figure(name: str, label: str, experts: Sequence[ExpertUse]) -> Figure:
    shown = [[f"{top.column} = {top.value}" for top in expert.top[:SHOWN]] for expert in experts]
    inputs = list(dict.fromkeys(text for own in shown for text in own))
    lifts = [{f"{top.column} = {top.value}": top.lift for top in expert.top} for expert in experts]
    trace = {
        "type": "heatmap",
        "x": [plot_text(_name(expert)) for expert in experts],
        "y": [plot_text(text) for text in inputs],
        "z": [[own.get(text) for own in lifts] for text in inputs],
        "zmin": 1,
        "zmax": max(top.lift for expert in experts for top in expert.top),
        "colorscale": SCALE,
        "colorbar": {"title": {"text": "lift"}},
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "hovertemplate": "%{y}<br>expert %{x}: lift %{z:.2f}<extra></extra>",
    }
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (
            _name(expert),
            f"{expert.load:.1%}",
            f"{top.column} = {top.value}",
            top.lift,
            f"{top.share:.1%}",
        )
        for expert in experts
        for top in expert.top
    )
    vertical = axis("", type="category", autorange="reversed", showgrid=False)
    return Figure(
        name,
        f"The {SHOWN} inputs that each expert gets most above its average: {label}. Where a field is empty, the input "
        "is not in the expert's list.",
        (trace,),
        layout(axis("expert", type="category", showgrid=False), vertical, height=160 + 22 * len(inputs)),
        Table(f"Inputs per expert: {label}", ("expert", "mean weight", "input", "lift", "share of rows"), rows, 2),
    )


def _name(expert: ExpertUse) -> str:
    """Without what all names begin with."""
    return expert.expert.removeprefix("expert.")
