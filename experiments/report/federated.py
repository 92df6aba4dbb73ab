"""The section on federated beside central training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from experiments.intervals import Interval, t_interval
from experiments.report.groups import Group, tasks_of
from experiments.report.markup import Figure, Section, Table, Value, plot_text
from experiments.report.plots import axis, error_bars, layout, look

#: AUC points that federated training may lose, as the project asks of itself.
MARGIN: Final = 0.5
INTRODUCTION = (
    "The area under the ROC curve on the test rows of a federated run, less that of a central run of the same model, "
    "in points (hundredths). Runs are compared at equal epochs over every row, and by seed where both have the same "
    "seeds. The grey band is the half point that federated training may lose.",
    "“iid” deals rows to the clients at random; “education” gives every client people of other schooling, so that "
    "clients differ as organisations do. The same number of epochs is fewer steps of averaging than of descent: what "
    "is lost is lost to clients walking apart between two rounds.",
)


@dataclass(frozen=True)
class Comparison:
    """A federated group beside the central one of the same model, data set and epochs.

    Attributes:
        federated, central: the groups.
        task: the task compared.
        paired: the differences are of runs with the same seed.
        points: their mean, in AUC points, with its interval.
    """

    federated: Group
    central: Group
    task: str
    paired: bool
    points: Interval

    @property
    def label(self) -> str:
        """The federated side and the task in words."""
        variant = f", {self.federated.variant}" if self.federated.variant else ""
        return f"{self.federated.model}, {self.federated.place}{variant}: {self.task}"


def comparisons(groups: Sequence[Group]) -> tuple[tuple[Comparison, ...], tuple[Group, ...]]:
    """What can be compared, and the federated groups that have no central one to be compared with."""
    found, alone = [], []
    for group in groups:
        if group.federated is None:
            continue
        same = (group.model, group.dataset, group.epochs)
        central = next((g for g in groups if g.federated is None and (g.model, g.dataset, g.epochs) == same), None)
        if central is None:
            alone.append(group)
            continue
        for task in tasks_of([run for _, run in group.runs]):
            ours, theirs = group.scores(task), central.scores(task)
            if ours and theirs:
                found.append(_compare(group, central, task))
    return tuple(found), tuple(alone)


def _compare(group: Group, central: Group, task: str) -> Comparison:
    ours, theirs = group.scores(task), central.scores(task)
    if shared := sorted(ours.keys() & theirs.keys()):
        points = t_interval([100 * (ours[seed] - theirs[seed]) for seed in shared])
        return Comparison(group, central, task, True, points)
    a, b = t_interval(list(ours.values())), t_interval(list(theirs.values()))
    mean, half = 100 * (a.mean - b.mean), 100 * math.hypot(a.half_width, b.half_width)
    return Comparison(group, central, task, False, Interval(mean, mean - half, mean + half, min(a.count, b.count)))


def federated_section(groups: Sequence[Group]) -> Section | None:
    """Differences per data set; None: nothing to compare."""
    found, alone = comparisons(groups)
    if not found:
        return None
    paragraphs = list(INTRODUCTION)
    if alone:
        names = "; ".join(group.label for group in alone)
        paragraphs.append(f"Without a central run of equal epochs, so not compared: {names}.")
    datasets = dict.fromkeys(c.federated.dataset for c in found)
    parts = [
        _figure(f"federated-{i}", d, [c for c in found if c.federated.dataset == d]) for i, d in enumerate(datasets)
    ]
    used = dict.fromkeys(name for c in found for name in (*c.federated.files, *c.central.files))
    return Section("federated", "Federated beside central", tuple(paragraphs), tuple(parts), tuple(used))


def _figure(name: str, dataset: str, found: Sequence[Comparison]) -> Figure:
    traces = []
    for position, task in enumerate(dict.fromkeys(c.task for c in found)):
        own = [c for c in found if c.task == task]
        traces.append(
            {
                "type": "scatter",
                "name": plot_text(task),
                "showlegend": True,
                "x": [c.points.mean for c in own],
                "y": [plot_text(c.label) for c in own],
                "error_x": error_bars([c.points for c in own]),
                "hovertemplate": "%{y}: %{x:.2f} points",
                **look(position, lines=False),
            }
        )
    frame = layout(
        axis("difference in AUC points (federated less central)"),
        axis("", type="category", autorange="reversed"),
        150 + 34 * len(found),
    )
    band = {
        "type": "rect", "xref": "x", "yref": "paper", "x0": -MARGIN, "x1": MARGIN, "y0": 0, "y1": 1,
        "fillcolor": "#8c959f", "opacity": 0.15, "line": {"width": 0}, "layer": "below",
    }  # fmt: skip
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (
            c.label,
            c.federated.epochs,
            t_interval(list(c.federated.scores(c.task).values())).mean,
            t_interval(list(c.central.scores(c.task).values())).mean,
            f"{c.points.mean:+.2f}",
            "n/a" if math.isinf(c.points.half_width) else f"{c.points.low:+.2f} to {c.points.high:+.2f}",
            c.points.count,
            "same seeds" if c.paired else "means",
            "yes" if abs(c.points.mean) <= MARGIN else "above" if c.points.mean > 0 else "no",
        )
        for c in found
    )
    header = (
        "federated run", "epochs", "federated AUC", "central AUC", "points", "interval", "seeds", "compared by",
        f"within {MARGIN} points",
    )  # fmt: skip
    return Figure(
        name,
        f"Federated less central on {dataset}, in AUC points, mean over seeds with 95 % intervals where there are "
        "several. 0 is as good as central training; the band is ± 0.5 points.",
        tuple(traces),
        {**frame, "shapes": [band]},
        Table(f"Federated beside central on {dataset}", header, rows),
    )
