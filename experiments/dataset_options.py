"""The options by which every command says what rows to work on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[str, typer.Option(help="census-kdd, census-kdd-education, adult, or a problem's YAML file.")]
DataFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of the data set's files.", show_default="FEDMTL_DATA or ./data; a YAML file's own"),
]
