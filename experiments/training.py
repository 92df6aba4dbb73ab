"""One model on one problem as asked for, centrally or federated, to a result."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from common.data.config import FilesSource
from common.errors import ConfigError
from experiments.models import model_section
from experiments.organisations import Partition
from experiments.results import TrainResult

if TYPE_CHECKING:
    from common.families.config import AnyTabularConfig
    from common.tasks import TaskSpec
    from experiments.problems import Problem

Schedule = Literal["linear", "cosine", "constant"]
ExpertWeights = Literal["routing", "examples"]
Optimizer = Literal["adamw", "sgd"]
#: Rows of a step; fewer where each of several clients has only a part of them.
CENTRAL_BATCH: Final = 512
FEDERATED_BATCH: Final = 64
#: Peak learning rate where none is given.
PEAK_RATE: Final[Mapping[Optimizer, float]] = {"adamw": 2e-3, "sgd": 0.3}


@dataclass(frozen=True)
class TrainPlan:
    """How to train.

    Attributes:
        epochs: passes over the training rows.
        optimizer: None: `adamw`, and in a federation `sgd` with momentum, whose short rounds would each begin with an
            AdamW that has seen nothing: its first steps are as long in every direction as the rate allows.
        learning_rate: at its peak; None: `PEAK_RATE`.
        schedule: how it goes on from there.
        seed: of first values, batches and division.
        batch_size: rows per step; None: `CENTRAL_BATCH` or `FEDERATED_BATCH`.
        threads: CPU threads; None: all cores, and one for each client of a federation.
        target_task: train and measure this task alone; None: all.
        limit: most rows of each split; None: all.
        federated: number of clients; None: central training.
        partition: how training rows are divided among them.
        local_epochs: passes of a client in one round.
        expert_weights: what experts' updates are weighed by; None: the server's default.
    """

    epochs: int = 6
    optimizer: Optimizer | None = None
    learning_rate: float | None = None
    schedule: Schedule = "linear"
    seed: int = 0
    batch_size: int | None = None
    threads: int | None = None
    target_task: str | None = None
    limit: int | None = None
    federated: int | None = None
    partition: Partition = "iid"
    local_epochs: float = 0.25
    expert_weights: ExpertWeights | None = None

    @property
    def chosen_optimizer(self) -> Optimizer:
        """The optimiser, also where none is given."""
        return self.optimizer or ("adamw" if self.federated is None else "sgd")

    @property
    def peak_rate(self) -> float:
        """The learning rate at its peak, also where none is given."""
        return self.learning_rate or PEAK_RATE[self.chosen_optimizer]


def train(name: str, problem: Problem, plan: TrainPlan) -> TrainResult:
    """Train one model and measure it on the test rows.

    Args:
        name: one of `experiments.models.MODELS`.
        problem: tasks, inputs and rows.
        plan: how to train.

    Raises:
        ConfigError: the plan makes no sense for the problem.
        DataError: the rows can't be had or do not fit the tasks.
        RunFailed: a process of the federation failed.
        TrainingDiverged: a loss is not finite.
    """
    from experiments.rows import limited

    tasks = limited(_chosen(problem, plan.target_task), plan.limit)
    if any(isinstance(task.data, FilesSource) and task.data.test is None for task in tasks.values()):
        raise ConfigError(f"{problem.source}: files.test is not given: results are measured on its rows")
    config = model_section(name, problem.inputs, tasks)
    measured = (
        _central(problem, config, tasks, plan) if plan.federated is None else _federated(problem, config, tasks, plan)
    )
    return TrainResult(
        model=name,
        dataset=problem.name,
        seed=plan.seed,
        epochs=plan.epochs,
        federated=plan.federated,
        partition=None if plan.federated is None else plan.partition,
        target_task=plan.target_task,
        **measured,
    )


def _chosen(problem: Problem, target: str | None) -> dict[str, TaskSpec]:
    if target is None:
        return dict(problem.tasks)
    if target not in problem.tasks:
        raise ConfigError(f"--target-task {target}: {problem.name} has the tasks {', '.join(problem.tasks)}")
    return {target: problem.tasks[target]}


def _central(
    problem: Problem, config: AnyTabularConfig, tasks: Mapping[str, TaskSpec], plan: TrainPlan
) -> dict[str, Any]:
    from experiments.central import train_centrally, train_settings
    from experiments.measuring import tested

    batch_size = plan.batch_size or CENTRAL_BATCH
    settings = train_settings(
        plan.epochs, batch_size, plan.peak_rate, plan.schedule, plan.threads, plan.chosen_optimizer
    )
    trained = train_centrally(problem, config, tasks, settings, plan.seed)
    test, specialisation = tested(trained.model(), trained.family, trained.rows.test, settings)
    return {
        "parameters": trained.family.summary().total_parameters,
        "seconds": trained.seconds,
        "examples_per_second": trained.examples_per_second,
        "settings": _settings(config, plan, batch_size),
        "test": test,
        "history": trained.history,
        "specialisation": specialisation,
    }


def _federated(
    problem: Problem, config: AnyTabularConfig, tasks: Mapping[str, TaskSpec], plan: TrainPlan
) -> dict[str, Any]:
    from experiments.central import train_settings
    from experiments.federated import Federation, rounds_for, train_federated

    if plan.federated is None:
        raise AssertionError("a plan without clients is trained centrally")
    batch_size = plan.batch_size or FEDERATED_BATCH
    rounds = rounds_for(plan.epochs, plan.local_epochs)
    federation = Federation(plan.federated, plan.partition, rounds, plan.expert_weights)
    settings = train_settings(
        plan.local_epochs, batch_size, plan.peak_rate, plan.schedule, plan.threads or 1, plan.chosen_optimizer
    )
    with tempfile.TemporaryDirectory(prefix="fedmtl-") as folder:
        done = train_federated(problem, config, tasks, settings, federation, plan.seed, Path(folder))
    further = {
        "rounds": rounds,
        "local_epochs": plan.local_epochs,
        "expert_weights": plan.expert_weights,
        "bytes_down": done.bytes_down,
        "bytes_up": done.bytes_up,
    }
    return {
        "parameters": done.parameters,
        "seconds": done.seconds,
        "examples_per_second": done.examples_per_second,
        "settings": {**_settings(config, plan, batch_size), **further},
        "test": done.test,
        "history": done.history,
        "specialisation": done.specialisation,
    }


def _settings(config: AnyTabularConfig, plan: TrainPlan, batch_size: int) -> dict[str, Any]:
    """All else that a result depends on."""
    inputs = {"numeric", "categorical", "missing"}
    return {
        "batch_size": batch_size,
        "optimizer": plan.chosen_optimizer,
        "learning_rate": plan.peak_rate,
        "schedule": plan.schedule,
        "threads": plan.threads,
        "limit": plan.limit,
        "config": config.model_dump(mode="json", exclude=inputs),
    }
