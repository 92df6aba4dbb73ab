"""``python -m experiments baselines``: gradient boosting and a plain network for each task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.dataset_options import DataFolder, Dataset
from experiments.out_folder import made_folder
from experiments.training import TrainPlan, train

if TYPE_CHECKING:
    from experiments.problems import Problem
    from experiments.results import TrainResult


def command(
    dataset: Dataset = "census-kdd",
    data: DataFolder = None,
    trees: Annotated[int, typer.Option(min=1, help="Trees of a boosted model.")] = 300,
    leaves: Annotated[int, typer.Option(min=2, help="Most leaves of a tree.")] = 63,
    tree_rate: Annotated[float, typer.Option(min=1e-6, max=1, help="Learning rate of the boosting.")] = 0.05,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of the networks over the training rows.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Of all random choices.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a JSON file of each result.")] = None,
    track: Annotated[bool, typer.Option("--track/--no-track", help="Keep results in MLflow's local store.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Train the baselines and measure them on the test rows."""
    if out is not None:
        made_folder(out)
    # Imported here, as they need what takes a second.
    from experiments.baselines import Boosting, boosted
    from experiments.problems import load_problem
    from experiments.publishing import publish

    def results(problem: Problem) -> Iterator[TrainResult]:
        yield boosted(problem, Boosting(trees, leaves, tree_rate, threads), seed, limit)
        yield train("single_task", problem, TrainPlan(epochs=epochs, seed=seed, threads=threads, limit=limit))

    publish(results(load_problem(dataset, data)), out, track=track, as_json=as_json)
