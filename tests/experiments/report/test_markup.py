"""Tables and figures as HTML."""

from __future__ import annotations

import math

import pytest

from experiments.report.markup import Figure, Section, Table, cell_text, section_html, table_html
from tests.experiments.report.samples import HOSTILE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"), (1234567, "1,234,567"), (0.12345, "0.123"), (math.inf, "∞"), (-math.inf, "-∞"),
        (math.nan, "not a number"), ("as it is", "as it is"),
    ],
)  # fmt: skip
def test_cells_are_for_people(value: str | float | None, text: str) -> None:
    assert cell_text(value, 3) == text


def test_no_text_of_a_section_becomes_markup() -> None:
    table = Table(HOSTILE, (HOSTILE, "n"), ((HOSTILE, HOSTILE),))
    figure = Figure("f", HOSTILE, (), {}, table)
    page = section_html(Section("s", HOSTILE, (HOSTILE,), (figure, table), (HOSTILE,)))
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count("&lt;/script&gt;") == 2 * 13  # heading, text, label, caption, source, four in each table


def test_a_row_is_named_by_its_first_cell_and_a_column_by_its_heading() -> None:
    page = table_html(Table("losses", ("family", "mean"), (("mmoe", 0.5),), digits=2))
    assert '<th scope="col">mean</th>' in page
    assert '<th scope="row">mmoe</th><td class="number">0.50</td>' in page
    assert "<caption>losses</caption>" in page
