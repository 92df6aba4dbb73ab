"""``python -m experiments train``: models on a data set, centrally or federated, to metrics on its test rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from common.arguments import several_at_once
from common.errors import ConfigError
from experiments.dataset_options import DataFolder, Dataset
from experiments.models import MODELS, model_name
from experiments.organisations import Partition
from experiments.out_folder import made_folder
from experiments.training import (
    CENTRAL_BATCH,
    FEDERATED_BATCH,
    PEAK_RATE,
    ExpertWeights,
    Optimizer,
    Schedule,
    TrainPlan,
    train,
)

#: Every client is a process with a copy of torch: a quarter of a gigabyte of memory.
MOST_CLIENTS: Final = 100
Command = several_at_once("--model", "--models")


def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "--models",
            help=f"One or several of {', '.join(MODELS)}, or a name such as SharedBottomModel.",
            show_default="mmoe",
        ),
    ] = None,
    dataset: Dataset = "census-kdd",
    data: DataFolder = None,
    federated: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_CLIENTS, help="Train in a federation of so many clients, each a process."),
    ] = None,
    partition: Annotated[Partition, typer.Option(help="How rows are divided among clients.")] = "iid",
    expert_weights: Annotated[
        ExpertWeights | None, typer.Option(help="What experts' updates weigh by: what gates sent them, or examples.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 6,
    local_epochs: Annotated[float, typer.Option(min=0.01, help="Passes of a client in one round.")] = 0.25,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a step.", show_default=f"{CENTRAL_BATCH}; federated {FEDERATED_BATCH}"),
    ] = None,
    optimizer: Annotated[
        Optimizer | None,
        typer.Option(help="AdamW, or SGD with momentum 0.9.", show_default="adamw; federated sgd"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=10,
            help="At its peak.",
            show_default=", ".join(f"{rate:g} of {name}" for name, rate in PEAK_RATE.items()),
        ),
    ] = None,
    schedule: Annotated[Schedule, typer.Option(help="How the learning rate goes on from its peak.")] = "linear",
    seed: Annotated[int, typer.Option(min=0, help="Of first values, batches and division.")] = 0,
    target_task: Annotated[str | None, typer.Option(help="Train and measure this task alone.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores; a client: one")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each split.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a JSON file of each result.")] = None,
    track: Annotated[bool, typer.Option("--track/--no-track", help="Keep results in MLflow's local store.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Train models and measure them on the test rows."""
    names = [model_name(name.strip()) for text in model or ["mmoe"] for name in text.split(",")]
    if again := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"--model: {', '.join(again)}: each once")
    if out is not None:
        made_folder(out)
    plan = TrainPlan(
        epochs=epochs,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        seed=seed,
        batch_size=batch_size,
        threads=threads,
        target_task=target_task,
        limit=limit,
        federated=federated,
        partition=partition,
        local_epochs=local_epochs,
        expert_weights=expert_weights,
    )
    # Imported here, as torch takes a second that a mistyped command should not.
    from experiments.problems import load_problem
    from experiments.publishing import publish

    problem = load_problem(dataset, data)
    publish((train(name, problem, plan) for name in names), out, track=track, as_json=as_json)
