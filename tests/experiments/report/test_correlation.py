"""The section on the sweep."""

from __future__ import annotations

import math

from experiments.report.correlation import correlation_section, spots
from experiments.report.markup import Figure, Table
from experiments.report.results import Cell, CorrelationResult
from tests.experiments.report.samples import cell, correlation


def cells(*documents: dict[str, object]) -> list[Cell]:
    return [Cell.model_validate(document) for document in documents]


def test_each_family_is_shown_with_the_rate_that_trains_it_best() -> None:
    found = spots(
        cells(
            cell("mmoe", 0.5, 0, 0.9, learning_rate=0.001, train_loss=0.10),
            cell("mmoe", 0.5, 1, 0.9, learning_rate=0.001, train_loss=0.30),
            # The other rate is better on test rows, which must not choose.
            cell("mmoe", 0.5, 0, 0.1, learning_rate=0.01, train_loss=0.25),
            cell("mmoe", 0.5, 1, 0.1, learning_rate=0.01, train_loss=0.25),
        )
    )
    assert [(spot.learning_rate, [c.seed for c in spot.cells]) for spot in found] == [(0.001, [0, 1])]


def test_families_come_in_their_usual_order_and_correlations_rise() -> None:
    found = spots(cells(*(cell(f, p, 0, 0.1) for f in ("own", "mmoe", "single_task") for p in (0.5, -0.5))))
    assert [(s.family, s.correlation) for s in found] == [
        (f, p) for f in ("single_task", "mmoe", "own") for p in (-0.5, 0.5)
    ]


def test_trainings_that_diverged_are_left_out_and_counted() -> None:
    documents = [cell("mmoe", 0.5, 0, 0.1), cell("mmoe", 0.5, 1, math.nan), cell("mmoe", 0.5, 2, 0.1, train_loss=None)]
    result = CorrelationResult(kind="correlation", cells=cells(*documents))
    section = correlation_section([("sweep.json", result)])
    assert section is not None
    assert any(text.startswith("2 of 3 trainings") for text in section.paragraphs)
    figure = section.parts[0]
    assert isinstance(figure, Figure)
    assert [row[-2] for row in figure.table.rows] == [1]


def test_points_carry_the_label_correlation_and_bars_are_the_interval() -> None:
    section = correlation_section([("sweep.json", CorrelationResult.model_validate(correlation()))])
    assert section is not None
    figure = section.parts[0]
    assert isinstance(figure, Figure)
    trace = figure.traces[0]
    assert [data[:2] for data in trace["customdata"]] == [[-0.5, -0.25], [0.0, 0.0], [0.9, 0.45]]
    assert all(abs(x - data[0]) < 0.05 for x, data in zip(trace["x"], trace["customdata"], strict=True))
    assert trace["x"] != figure.traces[1]["x"]
    # Values m, m + 0.001, m + 0.002: t(0.975, 2) * 0.001 / sqrt(3).
    assert math.isclose(trace["error_y"]["array"][0], 4.302653 * 0.001 / 3**0.5, rel_tol=1e-6)


def test_the_relations_are_told_as_they_were_found() -> None:
    section = correlation_section([("sweep.json", CorrelationResult.model_validate(correlation()))])
    assert section is not None
    table = section.parts[1]
    assert isinstance(table, Table)
    assert table.rows == (("shared_bottom rises", 0.02, 0.01, 0.03, "yes", None),)
