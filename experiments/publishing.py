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
            _kept(result)
    Console(width=None if sys.stdout.isatty() else 120).print(results_table(done))
    if as_json:
        line = done[0].to_json() if len(done) == 1 else json.dumps({"results": [asdict(result) for result in done]})
        sys.stdout.write(line + "\n")


def _kept(result: TrainResult) -> None:
    """Track it; a store that fails, whatever it raises, takes nothing else of the result along."""
    try:
        keep(result)
    except Exception as error:  # noqa: BLE001  # MLflow lets those of databases and networks through
        said = (str(error).splitlines() or [""])[0]
        log.warning("%s is not tracked: MLflow's store fails: %s: %s", result.name, type(error).__name__, said)


def results_table(results: Sequence[TrainResult]) -> Table:
    """A row per result: its metrics on the test rows, and what they cost."""
    named = [(result, _metrics(result)) for result in results]
    metrics = list(dict.fromkeys(name for _, row in named for name in row))
    table = Table(title=f"{results[0].dataset}, on test rows", title_justify="left")
    for heading in ("model", "trained"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seed", "epochs", "parameters", *metrics, "s", "rows/s"):
        table.add_column(heading, justify="right")
    for result, row in named:
        trained = "centrally" if result.federated is None else f"{result.federated} clients, {result.partition}"
        table.add_row(
            result.model,
            trained,
            str(result.seed),
            str(result.epochs),
            f"{result.parameters:,}",
            *(f"{row[name]:.4f}" if name in row else "" for name in metrics),
            f"{result.seconds:.0f}",
            f"{result.examples_per_second:,.0f}",
        )
    return table


def _metrics(result: TrainResult) -> dict[str, float]:
    """Test metrics by task and name; of a classification AUC alone where there is one."""
    found: dict[str, float] = {}
    for task, row in result.test.items():
        names = [name for name in row if name not in ("loss", "examples")]
        found |= {f"{task} {name}": row[name] for name in (["auc"] if "auc" in names else names)}
    return found
