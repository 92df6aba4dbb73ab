"""The whole report of a folder that fills every section."""

from __future__ import annotations

import re
from pathlib import Path

import plotly.graph_objects as go
import pytest

from common.errors import DataError
from experiments.report.document import sections
from experiments.report.markup import Figure, Section
from experiments.report.page import page_html
from experiments.report.results import read_results
from experiments.report_command import command
from tests.experiments.report.samples import HOSTILE, correlation, dynamics, everything, train, write

ALL = ["correlation", "census", "federated", "gates", "experts", "dynamics", "runs"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Section, ...]:
    return sections(read_results([everything(tmp_path_factory.mktemp("results"))]))


def figures(made: tuple[Section, ...]) -> list[Figure]:
    return [part for section in made for part in section.parts if isinstance(part, Figure)]


def test_every_section_is_there_once(made: tuple[Section, ...]) -> None:
    assert [section.name for section in made] == ALL


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ({"sweep": correlation()}, ["correlation"]),
        ({"weights": dynamics()}, ["dynamics"]),
        ({"one": train("shared_bottom", dataset="mine")}, ["runs"]),
        ({"one": train("shared_bottom")}, ["census", "runs"]),
    ],
)
def test_a_section_without_data_is_left_out(tmp_path: Path, documents: dict[str, object], expected: list[str]) -> None:
    made = sections(read_results([write(tmp_path, **documents)]))
    assert [section.name for section in made] == expected


def test_every_plot_is_one_that_plotly_knows_and_has_its_own_name(made: tuple[Section, ...]) -> None:
    shown = figures(made)
    assert len({figure.name for figure in shown}) == len(shown)
    for figure in shown:
        go.Figure(data=figure.traces, layout=figure.layout)  # refuses what is no attribute of a trace
        assert re.fullmatch(r"[a-z0-9-]+", figure.name)


def test_every_section_says_how_to_read_it_and_where_it_is_from(made: tuple[Section, ...]) -> None:
    for section in made:
        assert section.paragraphs
        assert section.sources
    for figure in figures(made):
        assert len(figure.caption) > 40
        assert figure.table.rows
        assert all(len(row) == len(figure.table.header) for row in figure.table.rows)


def test_what_came_from_a_file_is_shown_and_not_obeyed(made: tuple[Section, ...]) -> None:
    page = page_html(made, [HOSTILE], "/* plotly */")
    assert page.count("<script") == 3
    assert page.count("</script") == 3
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_a_page_asks_nothing_of_the_network(made: tuple[Section, ...]) -> None:
    page = page_html(made, ["results"], "/* plotly */")
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import|https?:""", page)
    assert "default-src 'none'" in page


def test_the_same_results_make_the_same_file(tmp_path: Path) -> None:
    folder = everything(tmp_path / "results")
    for name in ("a", "b"):
        command([folder], tmp_path / "pages" / f"{name}.html")
    first, second = ((tmp_path / "pages" / f"{name}.html").read_bytes() for name in ("a", "b"))
    assert first == second
    assert 4e6 < len(first) < 6e6


def test_folders_without_results_make_no_page(tmp_path: Path) -> None:
    write(tmp_path, other={"kind": "cell"})
    with pytest.raises(DataError, match="no results below"):
        command([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
