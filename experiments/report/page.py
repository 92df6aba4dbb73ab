"""Puts the report's page together: style, sections, plots and plotly's own script in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Final

from common.errors import ConfigError
from experiments.report.markup import Figure, Section, section_html

TITLE: Final = "fedmtl: experiments"
#: Nothing may be loaded or asked from anywhere: the page is its own whole world.
POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)
STYLE: Final = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; }
body { max-width: 70rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.8rem; } h2 { font-size: 1.35rem; margin-top: 3rem; border-bottom: 1px solid #d0d7de; }
p { max-width: 50rem; }
nav ul { columns: 2 20rem; padding-left: 1.2rem; }
figure { margin: 1.5rem 0; }
figcaption { max-width: 50rem; color: #424a53; font-size: .92rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; }
caption { text-align: left; padding: .3rem 0; color: #424a53; max-width: 50rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dee4; text-align: left; font-weight: 400; }
thead th { font-weight: 600; border-bottom: 2px solid #8c959f; vertical-align: bottom; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: #0a5cad; } code { font-size: .85rem; }
.source { color: #424a53; font-size: .9rem; } .failed { color: #a40e26; }
"""
#: The buttons of a plot. Named one by one, since plotly offers by itself to send the data to its makers' server.
CONFIG: Final = {
    "displaylogo": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    "plotlyServerURL": "",
    "responsive": True,
}
#: Draws every plot; `data-drawn` on the document's root counts them for whoever waits.
DRAW: Final = """
const figures = JSON.parse(document.getElementById('figures').textContent);
let drawn = 0;
for (const figure of figures) {
  const place = document.getElementById(figure.name);
  Plotly.newPlot(place, figure.traces, figure.layout, CONFIG)
    .then(() => { document.documentElement.dataset.drawn = String(++drawn); })
    .catch((error) => { place.textContent = 'This plot could not be drawn: ' + error; place.className = 'failed'; });
}
"""


def plotly_script() -> str:
    """The text of plotly's bundled script.

    Raises:
        ConfigError: plotly is not installed.
    """
    try:
        return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigError("the report needs plotly: install the extra `report`, pip install fedmtl[report]") from error


def page_html(sections: Sequence[Section], folders: Sequence[str], script: str) -> str:
    """The whole page.

    Args:
        sections: those that have something to show, in order.
        folders: names of the folders that were read.
        script: see `plotly_script`.

    Returns:
        HTML of one file that loads nothing; the same for the same arguments.
    """
    contents = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in sections)
    read = ", ".join(folders)
    body = "\n".join(section_html(section) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{TITLE}</h1>\n"
        f"<p>Made from the result files below {escape(read)}. Every plot has its numbers as a table beneath it; point "
        "at a mark in a plot to read its values. Intervals are 95 % intervals for the mean over seeds (Student's t), "
        "where nothing else is said.</p>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n{body}\n</main>\n'
        f'<script type="application/json" id="figures">{_figures_json(sections)}</script>\n'
        f"<script>{script}</script>\n<script>const CONFIG = {json.dumps(CONFIG)};{DRAW}</script>\n</body>\n</html>\n"
    )


def _figures_json(sections: Sequence[Section]) -> str:
    """All plots as JSON that cannot end the element it is in."""
    figures = [
        {"name": part.name, "traces": part.traces, "layout": part.layout}
        for section in sections
        for part in section.parts
        if isinstance(part, Figure)
    ]
    return json.dumps(figures, allow_nan=False, sort_keys=True).replace("<", "\\u003c")
