"""``python -m experiments correlation``: loss of every family against the correlation of two synthetic tasks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from common.arguments import several_at_once
from common.durable import DURABLE
from common.errors import ConfigError
from experiments.batched import Schedule
from experiments.cell_store import CellStore
from experiments.correlation_sweep import CORRELATIONS, Sweep, choose_rates, run_sweep
from experiments.out_folder import made_folder
from experiments.relations import Losses, relations, table
from experiments.synthetic import SyntheticSpec
from experiments.synthetic_family import known_families

#: The families of the paper's figure, and one that shares nothing.
PAPER: Final = ("single_task", "shared_bottom", "omoe", "mmoe")
Command = several_at_once("--families")


def command(
    out: Annotated[Path, typer.Option(help="Folder for correlation.json; one that is given again is gone on with.")],
    values: Annotated[
        str, typer.Option(help="Correlations of the tasks: cosines of their weight vectors, -1 to 1, with commas.")
    ] = ",".join(map(str, CORRELATIONS)),
    families: Annotated[list[str] | None, typer.Option(help="Families, or all.", show_default=" ".join(PAPER))] = None,
    seeds: Annotated[int, typer.Option(help="Models of each family and correlation.")] = 8,
    steps: Annotated[int, typer.Option(help="Minibatches of 256 rows in each training.")] = Schedule.steps,
    learning_rates: Annotated[
        str, typer.Option(help="Of Adam, with commas; each family's is chosen on validation rows.")
    ] = "3e-3,1e-2",
    threads: Annotated[int, typer.Option(help="Cores to use; 0: all that this process may run on.", min=0)] = 0,
    inputs: Annotated[int, typer.Option(help="Inputs of a row.")] = SyntheticSpec.inputs,
    train_rows: Annotated[int, typer.Option(help="Rows to train on.")] = SyntheticSpec.train,
    test_rows: Annotated[int, typer.Option(help="Rows to report.")] = SyntheticSpec.test,
    as_json: Annotated[bool, typer.Option("--json", help="Print correlation.json as the last line.")] = False,
) -> None:
    """Train every family on tasks of every correlation, and say which of the paper's findings hold."""
    sweep = Sweep(
        families=_families(families),
        correlations=_numbers("--values", values),
        seeds=seeds,
        learning_rates=_numbers("--learning-rates", learning_rates),
        schedule=Schedule(steps=steps),
        tasks=SyntheticSpec(0.0, inputs=inputs, train=train_rows, test=test_rows),
    )
    store, began = CellStore(made_folder(out) / "cells", sweep.cell_settings), time.monotonic()
    run_sweep(sweep, store, threads or _cores())
    found = _result(sweep, store, time.monotonic() - began)
    DURABLE.replace(out / "correlation.json", (json.dumps(found) + "\n").encode())
    if as_json:
        typer.echo(json.dumps(found))


def _result(sweep: Sweep, store: CellStore, seconds: float) -> dict[str, Any]:
    """What `correlation.json` holds: all cells of the folder, also those of earlier runs; prints the relations."""
    cells = choose_rates(store)
    losses = Losses.from_cells(cells)
    found = [] if losses is None else relations(losses)
    typer.echo(table(found) if found else "too few seeds, families or correlations for the paper's relations")
    settings = {
        "families": list(dict.fromkeys(cell["family"] for cell in cells)),
        "correlations": sorted({cell["correlation"] for cell in cells}, reverse=True),
        "seeds": sorted({cell["seed"] for cell in cells}),
        **sweep.cell_settings,
    }
    relations_found = [relation.to_dict() for relation in found]
    return {
        "kind": "correlation",
        "settings": settings,
        "seconds": round(seconds, 1),
        "cells": cells,
        "relations": relations_found,
    }


def _families(given: Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return PAPER
    names = tuple(part.strip() for text in given for part in text.split(","))
    return known_families() if names == ("all",) else names


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        # Without the sign of -0, which would be another file.
        return tuple(float(part) + 0.0 for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r}; numbers with commas between them are needed") from error
