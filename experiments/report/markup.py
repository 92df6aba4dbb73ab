"""What a section is made of, and how it is written as HTML. All text is escaped here, and nowhere else for HTML.

Text inside a plot is another matter: plotly reads some tags in it, so whatever came from a file passes through
`plot_text` on its way into a trace or a layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Numbers with a heading per column; the first cell of a row names it.

    Attributes:
        caption: what the numbers are.
        header: one per column.
        rows: of the header's length.
        digits: decimals of floats.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    digits: int = 4


@dataclass(frozen=True)
class Figure:
    """A plot, with its numbers as a table for who cannot or would rather not look at it.

    Attributes:
        name: in letters, digits and hyphens, the only one of the page.
        caption: what is shown, and how to read it.
        traces: as plotly takes them.
        layout: as plotly takes it.
        table: the numbers shown.
    """

    name: str
    caption: str
    traces: tuple[Mapping[str, Any], ...]
    layout: Mapping[str, Any]
    table: Table


@dataclass(frozen=True)
class Section:
    """A question and what was found.

    Attributes:
        name: in letters, digits and hyphens, the only one of the page.
        title: its heading.
        paragraphs: how to read it, what stands out, what to beware of.
        parts: in order.
        sources: the files it was made from.
    """

    name: str
    title: str
    paragraphs: tuple[str, ...]
    parts: tuple[Figure | Table, ...]
    sources: tuple[str, ...]


#: Text that begins as a number does stands where numbers stand.
NUMERIC: Final = re.compile(r"[+-]?\d")


def plot_text(text: str) -> str:
    """Text for a plot such that no tag in it is one."""
    return escape(text, quote=False)


def number(value: float, digits: int = 4) -> str:
    """A number for people; what is not finite is said in words."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}f}"


def cell_text(value: Value, digits: int) -> str:
    """What a table's cell says, not yet escaped."""
    if value is None:
        return "n/a"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else number(value, digits)


def table_html(table: Table) -> str:
    """The table, with headings that a screen reader ties to their cells."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    body = "\n".join(_row_html(row, table.digits) for row in table.rows)
    return (
        f'<div class="wide"><table><caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _row_html(row: Sequence[Value], digits: int) -> str:
    cells = [f'<th scope="row">{escape(cell_text(row[0], digits))}</th>']
    for value in row[1:]:
        kind = "" if isinstance(value, str) and not NUMERIC.match(value) else ' class="number"'
        cells.append(f"<td{kind}>{escape(cell_text(value, digits))}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def figure_html(figure: Figure) -> str:
    """The place of the plot, its caption, and its numbers folded away."""
    height = int(figure.layout.get("height", 420))
    return (
        f'<figure>\n<div class="plot" id="{figure.name}" style="height:{height}px" role="img" '
        f'aria-label="{escape(figure.caption)}"></div>\n'
        f"<figcaption>{escape(figure.caption)}</figcaption>\n"
        f"<details><summary>The numbers</summary>\n{table_html(figure.table)}\n</details>\n</figure>"
    )


def section_html(section: Section) -> str:
    """The section, its parts in order, its sources last."""
    parts = [f'<section id="{section.name}" aria-labelledby="{section.name}-title">']
    parts.append(f'<h2 id="{section.name}-title">{escape(section.title)}</h2>')
    parts += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
    parts += [figure_html(part) if isinstance(part, Figure) else table_html(part) for part in section.parts]
    files = ", ".join(f"<code>{escape(name)}</code>" for name in section.sources)
    plural = "file" if len(section.sources) == 1 else "files"
    parts.append(
        f'<details class="source"><summary>From {len(section.sources)} result {plural}</summary><p>{files}</p>'
        "</details>\n</section>"
    )
    return "\n".join(parts)
