"""Central training: one model on all rows in one place, by the clients' own training code.

A round of as many local epochs as asked for is what a federation of one client would do, so central and federated
results differ by the federation and by nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from client.slot_model import SlotModel
from client.trainer import LocalTrainer, TaskData
from common.families import build_family
from common.plan import SharingPlan
from common.training import Position, TrainSettings
from experiments.measuring import measured
from experiments.rows import Rows, encoded_rows

if TYPE_CHECKING:
    from client.tally import Progress, TaskReport
    from common.families.base import Family
    from common.families.config import AnyTabularConfig
    from common.plan import Slice
    from common.tasks import TaskSpec
    from experiments.problems import Problem

log = logging.getLogger("fedmtl.experiments")
#: Families whose tasks are trained one after the other, each with the earlier ones' parameters as they are.
IN_SEQUENCE: Final = frozenset({"progressive"})
CPU: Final = torch.device("cpu")
MOMENTUM: Final = 0.9


@dataclass(frozen=True)
class Trained:
    """A model after central training.

    Attributes:
        family: what it is.
        slice: its slots.
        values: slot id to trained value.
        rows: what it was trained and measured on.
        history: see `experiments.results.TrainResult`.
        seconds: of training, with the evaluations between epochs.
        examples_per_second: see `experiments.results.TrainResult`.
    """

    family: Family
    slice: Slice
    values: Mapping[str, Tensor]
    rows: Rows
    history: Sequence[Mapping[str, Any]]
    seconds: float
    examples_per_second: float

    def model(self) -> SlotModel:
        """The trained model, for evaluation."""
        model = SlotModel(self.family, self.slice, list(self.family.tasks), CPU)
        model.load(self.values, training=False)
        return model


def train_settings(
    epochs: float,
    batch_size: int,
    learning_rate: float,
    schedule: str = "linear",
    threads: int | None = None,
    optimizer: str = "adamw",
) -> TrainSettings:
    """How experiments train: all tasks of a row in one step, no weight decay.

    `adamw` begins at its peak and clips nothing. `sgd` has momentum 0.9, whose first long steps would leave units
    without a gradient for good: it warms up over a tenth of the run and clips.

    Raises:
        pydantic.ValidationError: a value is out of its range.
    """
    return TrainSettings.model_validate(
        {
            "local_epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "threads": threads,
            "optimizer": optimizer,
            "momentum": MOMENTUM if optimizer == "sgd" else 0.0,
            "head_learning_rate": 1.0,
            "weight_decay": 0.0,
            "warmup": 0.1 if optimizer == "sgd" else 0.0,
            "max_grad_norm": 1.0 if optimizer == "sgd" else None,
            "same_rows": True,
            "eval_batch_size": 4096,
        }
    )


def train_centrally(
    problem: Problem,
    config: AnyTabularConfig,
    tasks: Mapping[str, TaskSpec],
    settings: TrainSettings,
    seed: int,
    rows: Rows | None = None,
) -> Trained:
    """Train one model on all training rows.

    Args:
        problem: where the rows are.
        config: the model.
        tasks: those to train, in the order in which families that train in sequence take them.
        settings: `local_epochs` says how long.
        seed: of first values and batches.
        rows: those of an earlier training of the same problem, configuration, tasks and seed; None: they are read.

    Raises:
        DataError: the rows can't be had or do not fit the tasks.
        TrainingDiverged: a loss is not finite.
    """
    family = build_family(config, tasks, base_dir=Path())
    rows = encoded_rows(problem, family, tasks, seed) if rows is None else rows
    plan = SharingPlan.shared(family.blueprint())
    first = family.initial_values(seed)
    values = {slot.id: first[slot.parameter] for slot in plan.slots}
    stages = [[name] for name in tasks] if family.name in IN_SEQUENCE else [list(tasks)]
    began = time.perf_counter()
    histories: list[list[dict[str, Any]]] = []
    reports: list[Mapping[str, TaskReport]] = []
    for stage in stages:
        log.info("training %s on %s", family.name, ", ".join(stage))
        history, done = _train(family, plan.slice(stage), values, rows, settings, seed)
        histories.append(history)
        reports.append(done)
    return Trained(
        family=family,
        slice=plan.slice(tasks),
        values=values,
        rows=rows,
        history=_side_by_side(histories),
        seconds=time.perf_counter() - began,
        examples_per_second=_speed(reports),
    )


def _train(
    family: Family, part: Slice, values: dict[str, Tensor], rows: Rows, settings: TrainSettings, seed: int
) -> tuple[list[dict[str, Any]], Mapping[str, TaskReport]]:
    """Train the tasks of a slice from these values, which become the trained ones."""
    train, held_out = rows.train.encoded, rows.validation.encoded
    data = {task: TaskData(train[task], held_out[task]) for task in family.tasks if task in part.tasks}
    history: list[dict[str, Any]] = []

    def after_epoch(epoch: int, model: SlotModel) -> None:
        history.append({"epoch": epoch, **measured(model, family.tasks, held_out, settings)})
        told = ", ".join(f"{task} {_told(row)}" for task, row in history[-1]["tasks"].items())
        log.info("epoch %d: %s", epoch, told)

    trainer = LocalTrainer(family, data, CPU)
    result = trainer.train(
        part,
        values,
        settings,
        Position(1, 1),
        seed,
        "central",
        _ignored,
        threading.Event(),
        after_epoch=after_epoch,
    )
    for slot_id, delta in result.deltas.items():
        values[slot_id] = values[slot_id] + (delta.to_dense() if delta.is_sparse else delta)
    return history, result.reports


def _ignored(progress: Progress) -> None:
    del progress


def _told(row: Mapping[str, float]) -> str:
    name, value = next(iter(row.items()))
    return f"{name} {value:.4f}"


def _side_by_side(histories: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One history of tasks that were trained one after the other: each epoch holds all tasks' epoch of that number.

    Families that train so have no gates.
    """
    if len(histories) == 1:
        return list(histories[0])
    joined: list[dict[str, Any]] = []
    for entries in zip(*histories, strict=True):
        tasks = {task: row for part in entries for task, row in part["tasks"].items()}
        joined.append({"epoch": entries[0]["epoch"], "tasks": tasks})
    return joined


def _speed(stages: Sequence[Mapping[str, TaskReport]]) -> float:
    """Rows per second of training; the tasks of a stage share rows and steps."""
    rows = sum(max(done.num_examples for done in reports.values()) for reports in stages)
    return rows / sum(done.seconds for reports in stages for done in reports.values())
