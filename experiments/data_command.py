"""`python -m experiments data NAME`: fetch a public data set, or say which files to put where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError, DataError
from experiments.download import DATA_SETS, DataSet, fetch, is_there
from experiments.problems.problem import data_folder


def command(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(DATA_SETS)}.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; else what FEDMTL_DATA names, or ./data.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Another address of the same archive, such as a mirror.")] = None,
) -> None:
    """Fetch the files of a public data set; where there is no network, say where to put them."""
    if name not in DATA_SETS:
        raise ConfigError(f"data set {name!r}: allowed are {', '.join(DATA_SETS)}")
    data_set = DATA_SETS[name]
    folder = (to or data_folder()) / data_set.folder
    if all(is_there(file, folder) for file in data_set.files):
        typer.echo(f"{folder}: all files of {name} are there, as they were published")
        return
    typer.echo(f"fetching {url or data_set.url}")
    try:
        fetch(data_set, folder, url or data_set.url)
    except DataError as error:
        raise DataError(f"{error}\n{_by_hand(data_set, folder)}") from error
    typer.echo(f"{folder}: {', '.join(file.name for file in data_set.files)} fetched, as they were published")


def _by_hand(data_set: DataSet, folder: Path) -> str:
    """What a person can do where there is no network."""
    lines = [f"  {folder / file.name}  (or .gz of it; unpacked {file.size:,} bytes)" for file in data_set.files]
    return "\n".join([f"To put the files there yourself, get them from {data_set.page} as", *lines])
