"""The report in a real browser, from a file, as it will be opened."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from experiments.report.document import sections
from experiments.report.markup import Figure
from experiments.report.results import read_results
from experiments.report_command import command
from tests.e2e.test_page import CHROMIUM, FLAGS
from tests.experiments.report.samples import everything

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def test_every_plot_is_drawn_without_the_network_and_without_a_word_on_the_console(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    folder, page = everything(tmp_path / "results"), tmp_path / "report.html"
    command([folder], page)
    words = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    # A request would be a line on the console: the page's own policy forbids every one.
    done = subprocess.run(
        [*words, "--virtual-time-budget=4000", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    made = sections(read_results([folder]))
    plots = [part.name for section in made for part in section.parts if isinstance(part, Figure)]
    assert f'data-drawn="{len(plots)}"' in done.stdout
    drawn = re.findall(r'class="plot js-plotly-plot" id="([a-z0-9-]+)"', done.stdout)
    assert drawn == plots
    # Nothing else may be pressed: plotly has a button of its own that sends a plot's data away.
    buttons = set(re.findall(r'class="modebar-btn[^>]*data-title="([^"]+)"', done.stdout))
    assert buttons == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}
    assert "<title>fedmtl: experiments</title>" in done.stdout
