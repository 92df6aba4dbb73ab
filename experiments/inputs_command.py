"""`python -m experiments inputs FILE|PROBLEM`: the `numeric` and `categorical` sections that a file calls for.

Every party of a federation must turn rows into the same numbers, and none sees all rows. So what is found in a file, or
known from a public code book, is written into the configuration, and this prints it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from common.data.config import FileFormat
from common.data.files import read_file
from experiments.problems.inputs import Choice, found_inputs
from experiments.problems.problem import load_problem, shipped_problems

#: Columns of printed text, as in the shipped files.
WIDTH: Final = 118


def command(
    source: Annotated[str, typer.Argument(help="A csv, tsv, jsonl or parquet file, a problem's YAML, or its name.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the problem's files.")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="A column that is no input, such as a label.")] = None,
    numeric: Annotated[list[str] | None, typer.Option(help="A column that is numeric, however few numbers.")] = None,
    categorical: Annotated[list[str] | None, typer.Option(help="A column of codes, though it holds numbers.")] = None,
    distinct: Annotated[int, typer.Option(min=1, help="At most so many numbers are categories.")] = 20,
    missing: Annotated[str, typer.Option(help="What stands for an unknown value, beside an empty field.")] = "?",
) -> None:
    """Print the `numeric` and `categorical` sections of a model for any table."""
    if source in shipped_problems() or Path(source).suffix in (".yaml", ".yml"):
        inputs = load_problem(source, data).inputs
    else:
        choice = Choice(numeric or (), categorical or (), "judge", frozenset(leave_out or ()), distinct, missing)
        inputs = {**found_inputs(read_file(Path(source), FileFormat(strip=True), None), choice), "missing": missing}
    typer.echo(as_yaml(inputs), nl=False)


def as_yaml(inputs: Mapping[str, Any]) -> str:
    """The sections as YAML text, a column a line; a list that is too long for one goes on in the next."""
    lines: list[str] = []
    for section in ("numeric", "categorical"):
        if columns := inputs.get(section):
            lines.append(f"{section}:")
            for name, value in columns.items():
                lines += _entry(name, value)
    if (missing := inputs.get("missing")) is not None:
        lines.append(f"missing: {_flow(missing)}")
    return "\n".join(lines) + "\n"


def _entry(name: str, value: object) -> list[str]:
    """``  name: [a, b, ...]``, broken between values only."""
    if not isinstance(value, list):
        return [f"  {_flow(name)}: {_flow(value)}"]
    words = [f"{_flow(item)}," for item in value]
    words[-1] = words[-1].removesuffix(",") + "]"
    start = f"  {_flow(name)}: ["
    lines = [start + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append(" " * len(start) + word)
        else:
            lines[-1] += f" {word}"
    return lines


def _flow(value: object) -> str:
    """On one line, quoted as it must be inside brackets."""
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return text.strip()[1:-1]
