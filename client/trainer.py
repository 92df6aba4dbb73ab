"""One client's part of a round: take the slice, train it on the client's own data, return what changed.

Everything random follows from (seed, round, client): a client that is killed and started again redoes the round to
the same bits on the same machine with the same number of threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from client.batches import Batch, round_batches
from client.device import autocast, deterministic, dropout_stream, threads, to_device
from client.evaluate import evaluate_task
from client.failures import TrainingCancelled, TrainingDiverged
from client.loss import task_loss
from client.optimizer import build_optimizer, set_learning_rate
from client.residents import Residents
from client.slot_model import SlotModel
from common.errors import PlanError
from common.failpoints import failpoint
from common.metrics import Evaluation
from common.plan import Slice, Slot
from common.seeds import derive_seed
from common.training import Position, TrainSettings, learning_rate_factor, round_steps

if TYPE_CHECKING:
    from common.families.base import EncodedSplit, Family

__all__ = [
    "LocalResult",
    "LocalTrainer",
    "Progress",
    "TaskData",
    "TaskReport",
    "TrainingCancelled",
    "TrainingDiverged",
]

#: Seconds between two progress reports; each waits for the device once.
PROGRESS_INTERVAL_S = 0.5

#: Torch has one random stream, one thread count and one determinism switch per process, so work takes turns.
_TURN = threading.Lock()


@dataclass(frozen=True)
class TaskData:
    """A client's own rows of one task, encoded; `validation` is None where the client holds none out."""

    train: EncodedSplit
    validation: EncodedSplit | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a round's training is.

    Attributes:
        done_steps: optimiser steps taken.
        total_steps: optimiser steps of the round.
        loss: mean loss per example so far in the round; 0 before the first step.
        examples_per_second: since the round's first step; 0 before it.
    """

    done_steps: int
    total_steps: int
    loss: float
    examples_per_second: float


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What a client did for one task in a round.

    Attributes:
        num_examples: examples trained on, counted as often as they were seen; at least 1.
        num_steps: optimiser steps, at least 1.
        loss: mean training loss per example over those steps.
        seconds: time spent in those steps (on CUDA the time to launch them, which evens out over a round).
    """

    num_examples: int
    num_steps: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class LocalResult:
    """A client's update.

    Attributes:
        deltas: slot id to trained value minus received value, float32 on the CPU, all finite; exactly the
            travelling slots that a task in `reports` may train. Rows of an embedding table that no example touched
            are exactly zero.
        reports: the tasks that took at least one step (with fewer steps than tasks, not all do).
    """

    deltas: dict[str, Tensor]
    reports: dict[str, TaskReport]


class LocalTrainer:
    """Trains and evaluates the slices of one client. One piece of work at a time per process; others wait.

    Memory while training: a slice's trainable slots three times (value, gradient, delta) plus twice for AdamW.

    Args:
        family: builds the modules.
        data: the client's tasks and their rows.
        device: where to compute.
    """

    def __init__(self, family: Family, data: Mapping[str, TaskData], device: torch.device) -> None:
        self._family = family
        self._data = dict(data)
        self._device = device
        self._residents = Residents()
        self._bound: tuple[Slice, SlotModel] | None = None

    def evaluate(
        self,
        slice_: Slice,
        values: Mapping[str, Tensor],
        settings: TrainSettings,
        cancelled: threading.Event | None = None,
    ) -> dict[str, Evaluation]:
        """Results of the given values on the client's validation data, for each task that has some.

        Args:
            slice_: what the client holds.
            values: slot id to received value; left as they are.
            settings: batch size, precision, threads.
            cancelled: checked before every batch.

        Raises:
            PlanError: slice or values don't fit the family.
            TrainingDiverged: the model's outputs are not finite.
            TrainingCancelled: `cancelled` was set.
        """
        with _TURN, threads(settings.threads), deterministic(settings.deterministic):
            model = self._bind(slice_)
            model.load(self._with_residents(model, values), training=False)
            return {
                task: evaluate_task(model, self._family.tasks[task], held_out, settings, cancelled)
                for task in model.tasks
                if (held_out := self._data[task].validation) is not None
            }

    def train(
        self,
        slice_: Slice,
        values: Mapping[str, Tensor],
        settings: TrainSettings,
        position: Position,
        seed: int,
        client_id: str,
        progress: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> LocalResult:
        """Train the slice for one round.

        Args:
            slice_: what the client holds; slots of tasks it has no data for are left alone.
            values: slot id to received value; left as they are.
            settings: how to train.
            position: where in the run the round stands.
            seed: the run's seed.
            client_id: with seed and round it determines every random choice.
            progress: called before the first step, after the last, and about twice a second between.
            cancelled: checked before every step.

        Raises:
            PlanError: slice or values don't fit the family, or nothing in the slice may be trained.
            TrainingDiverged: a loss or a delta is not finite; nothing of the round is kept.
            TrainingCancelled: `cancelled` was set; nothing of the round is kept.
        """
        with _TURN, threads(settings.threads), deterministic(settings.deterministic):
            model = self._bind(slice_)
            received = self._with_residents(model, values, redo=position.round)
            model.load(received, training=True)

            trainable = [task for task in model.tasks if model.trained_by(frozenset({task}))]
            if not trainable:
                raise PlanError(f"no slot of the slice may be trained by the client's tasks {sorted(self._data)}")
            lengths = {task: self._data[task].train.lengths for task in trainable}
            batches = round_batches(lengths, settings, position, seed, client_id)
            total = round_steps(settings, {task: len(rows) for task, rows in lengths.items()})

            with dropout_stream(
                self._device, derive_seed(seed, "round", position.round, "client", client_id, "dropout")
            ):
                reports = self._descend(model, batches, total, settings, position, progress, cancelled)
            return LocalResult(self._changes(model, received, frozenset(reports), position), reports)

    def _descend(
        self,
        model: SlotModel,
        batches: Iterator[Batch],
        total: int,
        settings: TrainSettings,
        position: Position,
        progress: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> dict[str, TaskReport]:
        """Take the round's optimiser steps, one task's batch each."""
        slots = {i: slot for i, slot in model.trained_by(frozenset(model.tasks)).items() if i in model.parameter_slots}
        optimizer = build_optimizer(model, slots, settings)
        parameters = [model.parameter(slot_id) for slot_id in slots]
        tally = _Tally(position, total, progress, self._device)

        tally.report()
        for step, batch in enumerate(batches):
            if cancelled.is_set():
                raise TrainingCancelled(f"training of round {position.round} was cancelled after {step} steps")
            if step == total // 2:
                failpoint("client.training")
            with tally.step(batch) as loss_sum:
                model.train_only(batch.task)
                factor = learning_rate_factor(settings, position, step, total)
                set_learning_rate(optimizer, settings.learning_rate * factor)

                loss = self._loss(model, batch, settings)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                if settings.max_grad_norm is not None:
                    clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
                loss_sum += loss.detach() * len(batch.indices)
            tally.report_sometimes()
        return tally.reports()

    def _loss(self, model: SlotModel, batch: Batch, settings: TrainSettings) -> Tensor:
        """Mean loss of one batch."""
        split = self._data[batch.task].train
        inputs = to_device(split.collate(batch.indices), self._device)
        target = to_device({"labels": split.labels[torch.from_numpy(batch.indices)]}, self._device)
        with autocast(self._device, settings.precision):
            outputs = model.forward(batch.task, inputs)
        return task_loss(self._family.tasks[batch.task], outputs, target["labels"])

    def _changes(
        self, model: SlotModel, received: Mapping[str, Tensor], tasks: frozenset[str], position: Position
    ) -> dict[str, Tensor]:
        """Deltas of the travelling slots that these tasks trained; the client's own slots are kept here."""
        deltas: dict[str, Tensor] = {}
        trained: dict[Slot, Tensor] = {}
        started: dict[Slot, Tensor] = {}
        for slot_id, slot in model.trained_by(tasks).items():
            value = model.take(slot_id)
            if slot.residence == "client":
                trained[slot], started[slot] = value, received[slot_id]
            else:
                value = deltas[slot_id] = value.sub_(received[slot_id])
            if not bool(torch.isfinite(value).all()):
                raise TrainingDiverged(
                    f"round {position.round}: slot {slot_id!r} is not finite after training. "
                    "Lower training.learning_rate, or set training.max_grad_norm."
                )
        if trained:
            self._residents.keep(position.round, trained, started)
        return deltas

    def _bind(self, slice_: Slice) -> SlotModel:
        """The slice's model, the one of the last call when the slice is the same."""
        if self._bound is None or self._bound[0] != slice_:
            tasks = [task for task in self._data if task in slice_.tasks]
            if not tasks:
                raise PlanError(f"the slice of {sorted(slice_.tasks)} has no task of this client's {list(self._data)}")
            self._bound = None  # let the old modules go before the new ones are built
            self._bound = (slice_, SlotModel(self._family, slice_, tasks, self._device))
        return self._bound[1]

    def _with_residents(
        self, model: SlotModel, values: Mapping[str, Tensor], *, redo: int | None = None
    ) -> Mapping[str, Tensor]:
        """The received values with the client's own ones put in; a first value may come from the server."""
        own: dict[str, Tensor] = {}
        for slot_id, slot in model.slots.items():
            if slot.residence == "client":
                kept = self._residents.find(slot, frozenset(model.tasks), redo=redo)
                if kept is None and slot_id not in values:
                    raise PlanError(f"slot {slot_id!r} lives on the client, which has neither kept nor got a value")
                own[slot_id] = values[slot_id] if kept is None else kept
        return {**values, **own} if own else values


class _Tally:
    """Counts a round's steps. Losses are summed on the device, which is waited for only when one is reported."""

    def __init__(
        self, position: Position, total: int, progress: Callable[[Progress], None], device: torch.device
    ) -> None:
        self._position, self._total, self._progress, self._device = position, total, progress, device
        self._examples: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._losses: dict[str, Tensor] = {}
        self._started = self._reported = time.perf_counter()

    @contextmanager
    def step(self, batch: Batch) -> Iterator[Tensor]:
        """Time and count one step; yields the task's sum of losses, a scalar on the device to add to."""
        began, task = time.perf_counter(), batch.task
        if task not in self._losses:
            self._losses[task] = torch.zeros((), device=self._device)
        yield self._losses[task]
        self._examples[task] = self._examples.get(task, 0) + len(batch.indices)
        self._steps[task] = self._steps.get(task, 0) + 1
        self._seconds[task] = self._seconds.get(task, 0.0) + time.perf_counter() - began

    def report_sometimes(self) -> None:
        """Report after the last step, and when the last report is a while ago."""
        if sum(self._steps.values()) == self._total or time.perf_counter() - self._reported >= PROGRESS_INTERVAL_S:
            self.report()

    def report(self) -> None:
        """Tell the progress, after a look at the losses.

        Raises:
            TrainingDiverged: a sum of losses is not finite; once it isn't, it never is again.
        """
        losses = {task: float(total) for task, total in self._losses.items()}
        done, examples = sum(self._steps.values()), sum(self._examples.values())
        for task, loss in losses.items():
            if not abs(loss) < float("inf"):
                raise TrainingDiverged(
                    f"round {self._position.round}: the loss of task {task!r} is not finite within the first {done} "
                    "steps. Lower training.learning_rate, or set training.max_grad_norm."
                )
        self._reported = time.perf_counter()
        speed = examples / (self._reported - self._started) if examples else 0.0
        self._progress(Progress(done, self._total, sum(losses.values()) / max(1, examples), speed))

    def reports(self) -> dict[str, TaskReport]:
        """What was done for each task that took a step."""
        return {
            task: TaskReport(
                self._examples[task],
                self._steps[task],
                float(total) / self._examples[task],
                self._seconds[task],
            )
            for task, total in self._losses.items()
        }
