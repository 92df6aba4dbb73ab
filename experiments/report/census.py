"""The section with our census tables beside the published ones, and gradient boosting beside both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.intervals import Interval
from experiments.paper_tables import PADDLE_REC, PADDLE_REC_MMOE, PUBLISHED, PublishedRow, PublishedTable
from experiments.report.groups import Group
from experiments.report.markup import Figure, Section, Table, Value, number, plot_text
from experiments.report.plots import axis, error_bars, family_order, layout

TREES = "lightgbm"
INTRODUCTION = (
    "Area under the ROC curve on the test half of Census-Income (KDD); higher is better. Our columns are the mean over "
    "seeds with its 95 % interval and the run with the best main task; the paper's are its own mean and best.",
    "What differs from the paper. It tuned every method by itself, with thousands of trials and up to 2048 units per "
    "layer, and reports 400 runs with the tuned settings: its “best” is the best of 400, ours the best of a few. We "
    "train every family with one set of settings. Both take the data's own test file cut in halves; which rows are in "
    "which half, and how inputs are encoded, the paper does not say, so levels may differ by more than the noise of "
    "seeds. Numbers from Adult, a set of 48,842 rows that is often taken for this one of 299,285, are not comparable.",
    "The order of the networks is not to be relied on. The best runs of the paper's networks, tensor factorisation "
    "aside, lie within 0.005 of each other, and it gives no spread; how far ours are apart is told below with their "
    "intervals: where two means differ by less than the intervals' width, their order is noise. Gradient boosted "
    "trees, one model per task that shares nothing, stand beside both: on columns like these they are what "
    "there is to beat.",
)

LIMITED = "Some of our runs on {} were on a part of the rows (--limit): these are no reproduction of anything."


def census_section(groups: Sequence[Group]) -> Section | None:
    """Tables and plots for each published table with results of ours; None: there are none."""
    parts: list[Figure | Table] = []
    paragraphs = list(INTRODUCTION)
    used: list[str] = []
    for published in PUBLISHED.values():
        if any(run.settings.get("limit") for g in groups if g.dataset == published.dataset for _, run in g.runs):
            paragraphs.append(LIMITED.format(published.dataset))
        own = _one_each([g for g in groups if g.dataset == published.dataset and g.federated is None])
        if not own:
            continue
        used += [name for group in own for name in group.files]
        parts.append(_beside(published, own))
        tasks = (published.main, published.auxiliary)
        parts += [figure for task in tasks if (figure := _task_figure(published, own, task))]
        paragraphs += [text for task in tasks if (text := _spread(own, task))]
        paragraphs.append(f"Source of the published numbers for {published.main} and marital: {published.source}")
    if not parts:
        return None
    if "census-kdd" in {group.dataset for group in groups}:
        marks = ", ".join(f"{task} {best:.4f} best, {mean:.4f} mean" for task, (best, mean) in PADDLE_REC_MMOE.items())
        paragraphs.append(f"{PADDLE_REC}, reaches more with MMoE than the paper: {marks}.")
    return Section(
        "census", "Census: beside the paper and gradient boosting", tuple(paragraphs), tuple(parts), tuple(used)
    )


def _one_each(groups: Sequence[Group]) -> list[Group]:
    """For every family and variant the group with most seeds, of those the longest trained; in the families' order."""
    best: dict[tuple[str, str], Group] = {}
    for group in groups:
        held = best.get((group.model, group.variant))
        if held is None or (group.seeds, group.epochs) > (held.seeds, held.epochs):
            best[group.model, group.variant] = group
    return sorted(best.values(), key=lambda group: family_order(group.model))


def _name(group: Group) -> str:
    return f"{group.model}, {group.variant}" if group.variant else group.model


def _beside(published: PublishedTable, own: Sequence[Group]) -> Table:
    """Every family of ours and every method of theirs once."""
    main, auxiliary = published.main, published.auxiliary
    by_family = {row.family: row for row in published.rows if row.family}
    rows: list[tuple[Value, ...]] = []
    for group in own:
        theirs = by_family.get(group.model)
        rows.append((_name(group), *_ours(group, main, auxiliary), *_theirs(theirs), group.seeds, group.epochs))
    shown = {group.model for group in own}
    rows += [
        (f"{row.method} (paper only)", *[None] * 4, *_theirs(row), None, None)
        for row in published.rows
        if row.family not in shown
    ]
    header = (
        "model", f"{main}: ours, mean", f"{main}: ours, best", f"{auxiliary}: ours, mean",
        f"{auxiliary}: ours, at best", f"{main}: paper, mean", f"{main}: paper, best", f"{auxiliary}: paper, mean",
        f"{auxiliary}: paper, at best", "our seeds", "our epochs or trees",
    )  # fmt: skip
    return Table(f"AUC on the test rows, {main} (main task) and {auxiliary}", header, tuple(rows))


def _ours(group: Group, main: str, auxiliary: str) -> tuple[Value, ...]:
    mains, others = group.scores(main), group.scores(auxiliary)
    best = max(mains, key=lambda seed: (mains[seed], -seed), default=None)
    return (
        _with_interval(group.interval(main)),
        None if best is None else mains[best],
        _with_interval(group.interval(auxiliary)),
        None if best is None else others.get(best),
    )


def _theirs(row: PublishedRow | None) -> tuple[Value, ...]:
    return (row.main_mean, row.main_best, row.marital_mean, row.marital_at_best) if row else (None,) * 4


def _with_interval(interval: Interval | None) -> Value:
    if interval is None:
        return None
    if math.isinf(interval.half_width):
        return number(interval.mean)
    return f"{number(interval.mean)} ± {number(interval.half_width)}"


def _task_figure(published: PublishedTable, own: Sequence[Group], task: str) -> Figure | None:
    """Ours with intervals, the paper's mean and best, on one line per family."""
    known = [(_name(g), g.model, i) for g in own if (i := g.interval(task)) is not None]
    if not known:
        return None
    is_main = task == published.main
    papers = {
        r.family: (r.main_mean, r.main_best) if is_main else (r.marital_mean, r.marital_at_best)
        for r in published.rows
        if r.family
    }
    names = [name for name, _, _ in known]
    marks: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "name": "ours, mean with interval",
            "y": [plot_text(n) for n in names], "x": [i.mean for _, _, i in known],
            "error_x": error_bars([i for _, _, i in known]),
            "marker": {"color": "#0072B2", "size": 10}, "hovertemplate": "%{y}: %{x:.4f}",
        }
    ]  # fmt: skip
    second = "best run" if is_main else "at the best run of the main task"
    for position, (label, symbol) in enumerate((("mean", "diamond-open"), (second, "triangle-right-open"))):
        marks.append(
            {
                "type": "scatter", "mode": "markers", "name": f"paper, {label}",
                "y": [plot_text(n) for n, model, _ in known if model in papers],
                "x": [papers[model][position] for _, model, _ in known if model in papers],
                "marker": {"color": "#D55E00", "size": 10, "symbol": symbol, "line": {"width": 2}},
                "hovertemplate": "%{y}: %{x:.4f}",
            }
        )  # fmt: skip
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (name, i.mean, i.low, i.high, i.count, *papers.get(model, (None, None))) for name, model, i in known
    )
    return Figure(
        f"census-{published.dataset}-{task}",
        f"AUC of {task} on {published.dataset}: our mean over seeds with its 95 % interval, beside the paper's mean "
        f"and its {'best run' if is_main else 'value at the best run of the main task'}. The axis does not begin at 0.",
        tuple(marks),
        layout(axis(f"AUC of {task}"), axis("", type="category", autorange="reversed"), 170 + 34 * len(known)),
        Table(
            f"AUC of {task} on {published.dataset}",
            ("model", "mean", "low", "high", "seeds", "paper, mean", f"paper, {second}"),
            rows,
        ),
    )


def _spread(own: Sequence[Group], task: str) -> str | None:
    """How far the networks' means are apart, beside what seeds alone do."""
    known = {_name(g): i for g in own if g.model != TREES and (i := g.interval(task)) and math.isfinite(i.half_width)}
    if len(known) < 2:
        return None
    best, worst = max(known, key=lambda n: known[n].mean), min(known, key=lambda n: known[n].mean)
    apart = known[best].mean - known[worst].mean
    half = sum(i.half_width for i in known.values()) / len(known)
    text = (
        f"Our networks' means on {task} ({own[0].dataset}) lie {apart:.4f} apart, from {worst} to {best}; the "
        f"intervals are ± {half:.4f} on average."
    )
    trees = next((i for g in own if g.model == TREES and (i := g.interval(task))), None)
    if trees:
        above = trees.mean - known[best].mean
        text += f" Gradient boosting is {abs(above):.4f} {'above' if above >= 0 else 'below'} the best of them."
    return text
