"""The section that lists every training run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.report.groups import Group, tasks_of
from experiments.report.markup import Section, Table, Value

INTRODUCTION = (
    "All training runs that the report was made from, those that differ only in their seed in one row. Scores are "
    "means over seeds on the test rows, with half the width of the 95 % interval. Speed is of the machine that each "
    "run was on, and of whatever else it was doing: compare within a folder.",
)


def runs_section(groups: Sequence[Group]) -> Section | None:
    """A table per data set; None without runs."""
    if not groups:
        return None
    datasets = dict.fromkeys(group.dataset for group in groups)
    tables = tuple(_table(dataset, [g for g in groups if g.dataset == dataset]) for dataset in datasets)
    return Section("runs", "All training runs", INTRODUCTION, tables, tuple(n for g in groups for n in g.files))


def _table(dataset: str, groups: Sequence[Group]) -> Table:
    tasks = tasks_of([run for group in groups for _, run in group.runs])
    metrics = {
        (task, metric): None
        for task in tasks
        for group in groups
        for _, run in group.runs
        for metric in run.test.get(task, {})
        if metric != "examples"
    }
    header = ("model", "where", "epochs", "seeds", "parameters", "seconds", "examples/s")
    rows = tuple(_row(group, list(metrics)) for group in groups)
    return Table(f"Runs on {dataset}", (*header, *(f"{task} {metric}" for task, metric in metrics)), rows)


def _row(group: Group, metrics: Sequence[tuple[str, str]]) -> tuple[Value, ...]:
    runs = [run for _, run in group.runs]
    name = f"{group.model}, {group.variant}" if group.variant else group.model
    speeds = [run.examples_per_second for run in runs if run.examples_per_second is not None]
    scores: list[Value] = []
    for task, metric in metrics:
        interval = group.interval(task, metric)
        if interval is None:
            scores.append(None)
        elif math.isinf(interval.half_width):
            scores.append(interval.mean)
        else:
            scores.append(f"{interval.mean:.4f} ± {interval.half_width:.4f}")
    return (
        name,
        group.place,
        group.epochs,
        group.seeds,
        runs[0].parameters,
        f"{sum(run.seconds for run in runs) / len(runs):,.1f}",
        f"{sum(speeds) / len(speeds):,.0f}" if speeds else None,
        *scores,
    )
