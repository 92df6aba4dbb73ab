"""Federated training with nothing simulated but the organisations: a real server and a real client for each.

The model that the last round has made is measured on the test rows in this process. Families that train one task after
the other take as many rounds for each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from client.slot_model import SlotModel
from common.errors import ConfigError
from common.families import build_family
from experiments.central import CPU, IN_SEQUENCE
from experiments.measuring import gate_entries, tested
from experiments.organisations import Partition, own_files, write_organisations
from experiments.processes import Organisation, run_federation
from experiments.rows import encoded_split
from server.run_directory import load_version

if TYPE_CHECKING:
    from common.families.config import AnyTabularConfig
    from common.tasks import TaskSpec
    from common.training import TrainSettings
    from experiments.problems import Problem

log = logging.getLogger("fedmtl.experiments")
ExpertWeights = Literal["routing", "examples"]


@dataclass(frozen=True)
class Federation:
    """How the organisations take part.

    Attributes:
        clients: their number.
        partition: how training rows are divided among them.
        rounds: in which each client trains `local_epochs`.
        expert_weights: what experts' updates are weighed by; None: the server's default.
    """

    clients: int
    partition: Partition
    rounds: int
    expert_weights: ExpertWeights | None = None


@dataclass(frozen=True)
class Federated:
    """What a federation has come to.

    Attributes:
        test: task to metrics of the last version on the test rows.
        specialisation: see `experiments.measuring.tested`.
        parameters: how many the model has.
        history: see `experiments.results.TrainResult`.
        seconds: from the server's start to the last version.
        examples_per_second: rows of all clients together per second of the whole run.
        bytes_down, bytes_up: what crossed the connections, all clients together.
    """

    test: Mapping[str, Mapping[str, float]]
    specialisation: Mapping[str, Any]
    parameters: int
    history: Sequence[Mapping[str, Any]]
    seconds: float
    examples_per_second: float
    bytes_down: int
    bytes_up: int


def rounds_for(epochs: int, local_epochs: float) -> int:
    """Rounds in which every client sees its rows `epochs` times.

    Raises:
        ConfigError: they don't come out even.
    """
    rounds = round(epochs / local_epochs)
    if rounds < 1 or abs(rounds * local_epochs - epochs) > 1e-9:
        raise ConfigError(f"--epochs {epochs} is no whole number of rounds of --local-epochs {local_epochs:g}")
    return rounds


def train_federated(
    problem: Problem,
    config: AnyTabularConfig,
    tasks: Mapping[str, TaskSpec],
    settings: TrainSettings,
    federation: Federation,
    seed: int,
    folder: Path,
) -> Federated:
    """Divide the rows, run the federation, measure its last version.

    Args:
        problem: where the rows are.
        config: the model.
        tasks: labels of the same rows; every client has all of them.
        settings: of each client's training in a round.
        federation: how the organisations take part.
        seed: of first values, division and batches.
        folder: an empty one, for all that the processes write.

    Raises:
        ConfigError, DataError: the rows can't be had or can't be divided.
        RunFailed: a process failed.
    """
    folders = write_organisations(problem, tasks, federation.clients, federation.partition, seed, folder / "data")
    organisations = [Organisation(f"org-{number:02d}", list(tasks), path) for number, path in enumerate(folders)]
    summary = run_federation(server_config(config, tasks, settings, federation, seed), organisations, folder)
    rows = max(sum(client[task]["train"] for client in summary["data"].values()) for task in tasks)
    passes = federation.rounds * (settings.local_epochs or 1)
    test, specialisation = _tested(problem, config, tasks, settings, seed, folder / "run")
    return Federated(
        test=test,
        specialisation=specialisation,
        parameters=summary["model"]["total_parameters"],
        history=[_entry(row) for row in summary["history"]],
        seconds=summary["seconds"],
        examples_per_second=rows * passes / summary["seconds"],
        bytes_down=summary["bytes_down"],
        bytes_up=summary["bytes_up"],
    )


def server_config(
    config: AnyTabularConfig,
    tasks: Mapping[str, TaskSpec],
    settings: TrainSettings,
    federation: Federation,
    seed: int,
) -> dict[str, Any]:
    """What ``python -m server --config`` reads; arguments as for `train_federated`."""
    weights = {} if federation.expert_weights is None else {"expert_weights": federation.expert_weights}
    stages = list(tasks) if config.family in IN_SEQUENCE else []
    rounds = federation.rounds * max(1, len(stages))
    return {
        "run": {"rounds": rounds, "seed": seed, "keep_versions": 1, "fsync": False},
        # Many processes on few cores may be quiet for long.
        "server": {"limits": {"silence_s": 60.0}},
        "federation": {"min_clients": federation.clients, "quorum": 1.0, **weights},
        "model": config.model_dump(mode="json"),
        "tasks": {
            name: own_files(task).model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
            for name, task in tasks.items()
        },
        "training": settings.model_dump(mode="json", exclude_defaults=True),
        "freezing": {
            "schedule": [
                {
                    "from_round": 1 + number * federation.rounds,
                    "until_round": (number + 1) * federation.rounds,
                    "open": f"own:{task}",
                }
                for number, task in enumerate(stages)
            ]
        },
    }


def _tested(
    problem: Problem,
    config: AnyTabularConfig,
    tasks: Mapping[str, TaskSpec],
    settings: TrainSettings,
    seed: int,
    run: Path,
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """The newest version on the test rows."""
    family = build_family(config, tasks, base_dir=Path())
    state = load_version(max((run / "model").glob("round-*.safetensors")))
    model = SlotModel(family, state.plan.slice(tasks), list(tasks), CPU)
    model.load(state.values, training=False)
    return tested(model, family, encoded_split(problem, family, tasks, "test", seed), settings)


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """A version of a run's summary as results show it."""
    kept = ("round", "seconds", "bytes_down", "bytes_up")
    tasks = {
        task: {name: value for name, value in found.items() if name != "clients"}
        for task, found in row["tasks"].items()
    }
    return {**{key: row[key] for key in kept}, "tasks": tasks, **gate_entries(row.get("gates"))}
