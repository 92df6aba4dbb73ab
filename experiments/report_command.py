"""``python -m experiments report``: one HTML file of all that the experiments found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.out_folder import made_place


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of results, as given to --out.")],
    out: Annotated[Path, typer.Option(help="The file to write; it is replaced.")] = Path("report.html"),
) -> None:
    """Make one self-contained HTML file of the results below some folders; needs the extra `report`."""
    out = made_place(out)
    from common.durable import DURABLE
    from common.errors import DataError
    from experiments.report.document import sections
    from experiments.report.page import page_html, plotly_script
    from experiments.report.results import KINDS, read_results

    script = plotly_script()
    made = sections(read_results(folders))
    if not made:
        raise DataError(
            f"no results below {', '.join(map(str, folders))}: the report reads JSON files of the kinds "
            f"{', '.join(KINDS)}, which `python -m experiments train`, `correlation` and `dynamics` write"
        )
    DURABLE.replace(out, page_html(made, [folder.resolve().name for folder in folders], script).encode())
    sys.stdout.write(f"{out}: {', '.join(section.title for section in made)}\n")
