"""The section on the sweep over the correlation of two tasks."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.intervals import Interval, t_interval
from experiments.report.markup import Figure, Section, Table, Value, number, plot_text
from experiments.report.plots import axis, error_bars, family_look, family_order, layout
from experiments.report.results import Cell, CorrelationResult

INTRODUCTION = (
    "Two tasks are made whose weight vectors have a given cosine, after section 3 of Ma et al. (MMoE, KDD 2018), and "
    "every family is trained on them. Lower is better. Read each line from right to left: a family that shares what "
    "does not fit both tasks rises as the correlation falls. The correlation of the labels falls faster than the "
    "cosine, as labels are not linear in the inputs; it is shown when you point at a mark, and in the tables.",
    "Bars are 95 % intervals for the mean over seeds. Two intervals that overlap do not mean that two families are "
    "equal: the families share seeds, so the relations below, which compare pair by pair, tell more.",
)

#: How far the marks of two families are apart at the same correlation, so that their bars do not hide each other.
ASIDE = 0.008


@dataclass(frozen=True)
class Spot:
    """One family at one correlation: its cells with one learning rate.

    Attributes:
        family: its name.
        correlation: cosine of the weight vectors.
        learning_rate: of its cells.
        cells: one per seed.
    """

    family: str
    correlation: float
    learning_rate: float
    cells: tuple[Cell, ...]

    @property
    def label_correlation(self) -> float:
        """Mean over seeds of the labels' correlation."""
        return statistics.fmean(cell.label_correlation for cell in self.cells)


def spots(cells: Sequence[Cell]) -> tuple[Spot, ...]:
    """The families at each correlation, each with one learning rate.

    Of several that a file has, it is the one with the lowest mean training loss, so that nothing of the test rows is
    used. Cells without finite losses are left out.
    """
    found: defaultdict[tuple[str, float], defaultdict[float, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if _finite(cell.test_loss) and _finite(cell.train_loss):
            found[cell.family, cell.correlation][cell.learning_rate].append(cell)
    chosen = []
    for (family, correlation), rates in found.items():
        rate = min(rates, key=lambda r: (statistics.fmean(c.train_loss or 0.0 for c in rates[r]), r))
        chosen.append(Spot(family, correlation, rate, tuple(sorted(rates[rate], key=lambda c: c.seed))))
    return tuple(sorted(chosen, key=lambda s: (family_order(s.family), s.correlation)))


def correlation_section(results: Sequence[tuple[str, CorrelationResult]]) -> Section | None:
    """Loss against correlation, the relations and the distance between gates; None without a sweep."""
    parts: list[Figure | Table] = []
    paragraphs = list(INTRODUCTION)
    for position, (_, result) in enumerate(results):
        found = spots(result.cells)
        if lost := sum(not (_finite(c.test_loss) and _finite(c.train_loss)) for c in result.cells):
            paragraphs.append(f"{lost} of {len(result.cells)} trainings ended without a finite loss and are left out.")
        prefix = f"correlation-{position}"
        parts.append(_loss_figure(f"{prefix}-test", found, "test loss", lambda c: c.test_loss))
        if result.relations:
            parts.append(_relations(result))
        parts.append(_loss_figure(f"{prefix}-train", found, "training loss", lambda c: c.train_loss))
        if any(_finite(cell.gate_distance) for spot in found for cell in spot.cells):
            parts.append(_distance_figure(f"{prefix}-distance", found))
    if not parts:
        return None
    return Section(
        "correlation", "Loss against correlation", tuple(paragraphs), tuple(parts), tuple(name for name, _ in results)
    )


def _loss_figure(name: str, found: Sequence[Spot], quantity: str, loss: Callable[[Cell], float | None]) -> Figure:
    values = {spot: [value for cell in spot.cells if (value := loss(cell)) is not None] for spot in found}
    intervals = {spot: t_interval(v) for spot, v in values.items()}
    rows: list[tuple[Value, ...]] = [
        (
            spot.family, number(spot.correlation, 1), spot.label_correlation, interval.mean, interval.low,
            interval.high, statistics.stdev(values[spot]) if interval.count > 1 else None, interval.count,
            f"{spot.learning_rate:g}",
        )
        for spot, interval in intervals.items()
    ]  # fmt: skip
    header = ("family", "correlation", "label correlation", "mean", "low", "high", "std over seeds", "seeds", "rate")
    return Figure(
        name,
        f"Mean {quantity} over seeds against the correlation of the two tasks, with 95 % intervals. The learning rate "
        "of each family was chosen without the test rows. Marks stand a little aside so that all bars are seen.",
        _traces(intervals),
        layout(axis("correlation of the tasks (cosine of their weights)"), axis(f"{quantity} (lower is better)")),
        Table(f"Mean {quantity} per family and correlation", header, tuple(rows)),
    )


def _distance_figure(name: str, found: Sequence[Spot]) -> Figure:
    intervals = {
        spot: t_interval(values)
        for spot in found
        if (values := [c.gate_distance for c in spot.cells if c.gate_distance is not None and _finite(c.gate_distance)])
    }
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (s.family, number(s.correlation, 1), s.label_correlation, i.mean, i.low, i.high, i.count)
        for s, i in intervals.items()
    )
    header = ("family", "correlation", "label correlation", "mean", "low", "high", "seeds")
    return Figure(
        name,
        "Jensen-Shannon distance between the gates of the two tasks, with 95 % intervals: 0 where both tasks use the "
        "experts alike. Gates that can part company should do so as the correlation falls.",
        _traces(intervals),
        layout(axis("correlation of the tasks (cosine of their weights)"), axis("distance between the tasks' gates")),
        Table("Distance between the tasks' gates", header, rows),
    )


def _traces(intervals: dict[Spot, Interval]) -> tuple[dict[str, Any], ...]:
    traces = []
    families = list(dict.fromkeys(spot.family for spot in intervals))
    for position, family in enumerate(families):
        aside = (position - (len(families) - 1) / 2) * ASIDE
        own = {spot: interval for spot, interval in intervals.items() if spot.family == family}
        traces.append(
            {
                "type": "scatter",
                "name": plot_text(family),
                "x": [spot.correlation + aside for spot in own],
                "y": [interval.mean for interval in own.values()],
                "error_y": error_bars(list(own.values())),
                "customdata": [
                    [s.correlation, s.label_correlation, number(i.low), number(i.high), i.count] for s, i in own.items()
                ],
                "hovertemplate": "%{y:.4f} (%{customdata[2]} to %{customdata[3]})<br>correlation %{customdata[0]}<br>"
                "label correlation %{customdata[1]:.3f}<br>%{customdata[4]} seeds",
                **family_look(family),
            }
        )
    return tuple(traces)


def _relations(result: CorrelationResult) -> Table:
    words = {True: "yes", False: "no", None: "unclear"}
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (r.relation, r.estimate, r.low, r.high, r.holds if isinstance(r.holds, str) else words[r.holds], r.seeds)
        for r in result.relations
    )
    return Table(
        "The paper's findings as relations, tested on pairs with the same seed. One holds where the "
        "whole interval agrees, and does not where all of it contradicts; between the two these runs leave it open.",
        ("relation", "estimate", "low", "high", "holds", "seeds"),
        rows,
    )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
