"""How training goes when the tasks' losses are weighed differently, all else equal."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError

if TYPE_CHECKING:
    from experiments.problems import Problem
    from experiments.training import TrainPlan

log = logging.getLogger("fedmtl.experiments")


@dataclass(frozen=True)
class WeightedRun:
    """A training under one weighting.

    Attributes:
        weights: task to the weight of its loss.
        history: see `experiments.results.TrainResult`.
        test: task to metric to value on the test rows.
    """

    weights: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    test: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Dynamics:
    """The same training under several weightings.

    Attributes:
        model: its name, see `experiments.models`.
        dataset: the problem's name.
        seed: of first values and batches, the same in all of them.
        runs: one per weighting.
    """

    model: str
    dataset: str
    seed: int
    runs: Sequence[WeightedRun]

    def to_json(self) -> str:
        """One line, as the report reads it."""
        runs = [{"weights": dict(r.weights), "history": list(r.history), "test": dict(r.test)} for r in self.runs]
        return json.dumps(
            {"kind": "dynamics", "model": self.model, "dataset": self.dataset, "seed": self.seed, "runs": runs}
        )

    def write(self, folder: Path) -> Path:
        """Write it into the folder, which is made. Returns the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"dynamics-{self.model}-{self.dataset}-s{self.seed}.json"
        path.write_text(self.to_json() + "\n", encoding="utf-8")
        return path


def parse_weights(text: str, tasks: Sequence[str]) -> dict[str, float]:
    """A weighting such as ``income=4,marital=1``; a task that is not named weighs 1.

    Raises:
        ConfigError: a task is unknown or named twice, or a weight is no number above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        task, _, number = (piece.strip() for piece in part.partition("="))
        if task not in tasks or task in found:
            raise ConfigError(f"--weights {text}: {task!r}: give each of {', '.join(tasks)} once, as TASK=NUMBER")
        try:
            found[task] = float(number)
        except ValueError as error:
            raise ConfigError(f"--weights {text}: {task}={number}: not a number") from error
        if not (math.isfinite(found[task]) and found[task] > 0):
            raise ConfigError(f"--weights {text}: {task}={number}: a weight is above 0")
    return {task: found.get(task, 1.0) for task in tasks}


def usual_weightings(tasks: Sequence[str], much: float = 4.0) -> list[dict[str, float]]:
    """All alike, then each task in turn with more weight than the others."""
    alike = dict.fromkeys(tasks, 1.0)
    return [alike, *({**alike, task: much} for task in tasks)] if len(tasks) > 1 else [alike]


def train_dynamics(name: str, problem: Problem, plan: TrainPlan, weightings: Sequence[Mapping[str, float]]) -> Dynamics:
    """Train one model centrally under each weighting, from the same first values and with the same batches.

    Args:
        name: see `experiments.models`.
        problem: tasks, inputs and rows.
        plan: how to train; nothing of federations in it is read.
        weightings: task to the weight of its loss.

    Raises:
        ConfigError: the model or a task is unknown.
        DataError: the rows can't be had or do not fit the tasks.
        TrainingDiverged: a loss is not finite.
    """
    from common.training import TrainSettings
    from experiments.central import train_centrally, train_settings
    from experiments.measuring import measured
    from experiments.models import model_section
    from experiments.rows import limited
    from experiments.training import CENTRAL_BATCH

    tasks = limited(problem.tasks, plan.limit)
    config = model_section(name, problem.inputs, tasks)
    batch_size = plan.batch_size or CENTRAL_BATCH
    alike = train_settings(plan.epochs, batch_size, plan.peak_rate, plan.schedule, plan.threads)
    runs: list[WeightedRun] = []
    rows = None
    for weights in weightings:
        log.info("weights %s", ", ".join(f"{task} {weight:g}" for task, weight in weights.items()))
        settings = TrainSettings.model_validate({**alike.model_dump(), "loss_weights": dict(weights)})
        trained = train_centrally(problem, config, tasks, settings, plan.seed, rows)
        rows = trained.rows
        test = measured(trained.model(), tasks, rows.test.encoded, settings)["tasks"]
        runs.append(WeightedRun(weights, trained.history, test))
    return Dynamics(name, problem.name, plan.seed, runs)
