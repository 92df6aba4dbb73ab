"""What becomes of results: files, the tracking store, a table for people and one line of JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.results import TrainResult
from experiments.tracking import track as keep

log = logging.getLogger("fedmtl.experiments")


def publish(results: Iterable[TrainResult], out: Path | None, *, track: bool, as_json: bool) -> None:
    """Keep each result as soon as it is there; at the end print a table of all.

    Args:
        results: made one by one.
        out: folder of JSON files; None writes none.
        track: keep them in MLflow's store, where MLflow is installed.
        as_json: after the table, one line: the result, or several in a list under ``results``.
    """
    done = []
    for result in results:
        done.append(result)
        if out is not None:
            log.info("wrote %s", result.write(out))
        if track:
            keep(result)
    Console(width=None if sys.stdout.isatty() else 120).print(results_table(done))
    if as_json:
        line = done[0].to_json() if len(done) == 1 else json.dumps({"results": [asdict(result) for result in done]})
        sys.stdout.write(line + "\n")


def results_table(results: Sequence[TrainResult]) -> Table:
    """A row per result: its metrics on the test rows, and what they cost."""
    table = Table(title=f"{results[0].dataset}, on test rows")
    columns = list(
        dict.fromkeys(
            (task, name)
            for result in results
            for task, row in result.test.items()
            for name in row
            if name not in ("loss", "examples")
        )
    )
    table.add_column("model")
    for heading in ("seed", "epochs", "parameters", *(f"{task} {name}" for task, name in columns), "s", "examples/s"):
        table.add_column(heading, justify="right")
    for result in results:
        model = result.model if result.federated is None else f"{result.model}, {result.federated} clients"
        model += f" ({result.partition})" if result.partition else ""
        values = [result.test.get(task, {}).get(name) for task, name in columns]
        table.add_row(
            model,
            str(result.seed),
            str(result.epochs),
            f"{result.parameters:,}",
            *("" if value is None else f"{value:.4f}" for value in values),
            f"{result.seconds:.1f}",
            f"{result.examples_per_second:,.0f}",
        )
    return table
