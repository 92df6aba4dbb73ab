"""``python -m experiments dynamics``: the same training under different weights of the tasks."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.dataset_options import DataFolder, Dataset
from experiments.models import MODELS, model_name
from experiments.out_folder import made_folder
from experiments.training import Schedule, TrainPlan

log = logging.getLogger("fedmtl.experiments")


def command(
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(MODELS)}, or a name such as SharedBottomModel.")
    ] = "mmoe",
    dataset: Dataset = "census-kdd",
    data: DataFolder = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights of the tasks' losses, such as income=4,marital=1; once for each training.",
            show_default="all alike, then each task in turn with 4",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 6,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a step.")] = None,
    learning_rate: Annotated[float, typer.Option(min=1e-9, max=10, help="Of AdamW, at its peak.")] = 2e-3,
    schedule: Annotated[Schedule, typer.Option(help="How the learning rate goes on from its peak.")] = "linear",
    seed: Annotated[int, typer.Option(min=0, help="Of first values and batches.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a JSON file, which the report reads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Train the same model under different weights of the tasks' losses."""
    name = model_name(model)
    plan = TrainPlan(
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=schedule,
        seed=seed,
        batch_size=batch_size,
        threads=threads,
        limit=limit,
    )
    if out is not None:
        made_folder(out)
    # Imported here, as torch takes a second that a mistyped command should not.
    from experiments.dynamics import parse_weights, train_dynamics, usual_weightings
    from experiments.problems import load_problem

    problem = load_problem(dataset, data)
    tasks = list(problem.tasks)
    weightings = [parse_weights(text, tasks) for text in weights] if weights else usual_weightings(tasks)
    found = train_dynamics(name, problem, plan, weightings)
    if out is not None:
        log.info("wrote %s", found.write(out))
    for run in found.runs:
        said = ", ".join(f"{task} {weight:g}" for task, weight in run.weights.items())
        scores = "; ".join(
            f"{task} " + ", ".join(f"{metric} {value:.4f}" for metric, value in row.items() if metric != "examples")
            for task, row in run.test.items()
        )
        sys.stdout.write(f"weights {said}: {scores}\n")
    if as_json:
        sys.stdout.write(found.to_json() + "\n")
