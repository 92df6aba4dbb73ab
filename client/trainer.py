"""One client's part of a round: take the slice, train it on the client's own data, return what changed.

Everything random follows from (seed, round, client): a client that is killed and started again redoes the round to
the same bits on the same machine with the same number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.batches import round_batches
from client.descent import descend
from client.device import deterministic, dropout_stream, threads
from client.evaluate import evaluate_task
from client.failures import TrainingCancelled, TrainingDiverged
from client.memory import ClientMemory, Memory, resident, residents
from client.objective import Objective
from client.precision import faster_precision
from client.slot_model import SlotModel
from client.tally import Progress, Tally, TaskReport
from client.vocabulary import CompactTable, CompactVocabulary, compactable
from common.errors import PlanError
from common.metrics import Evaluation
from common.plan import Slice, Slot
from common.seeds import derive_seed
from common.training import Position, Precision, TrainSettings, round_steps

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

#: Torch has one random stream, one thread count and one determinism switch per process, so work takes turns.
_TURN = threading.Lock()


@dataclass(frozen=True)
class TaskData:
    """A client's own rows of one task, encoded; `validation` is None where the client holds none out."""

    train: EncodedSplit
    validation: EncodedSplit | None = None


@dataclass(frozen=True)
class LocalResult:
    """A client's update.

    Attributes:
        deltas: slot id to trained value minus received value, float32 on the CPU, all finite; exactly the
            travelling slots that a task in `reports` may train. Rows of an embedding table that no example touched
            are exactly zero; of a table that was kept compact the others come as a sparse tensor, coalesced, with
            one sparse dimension.
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
        self._memory = ClientMemory()
        self._bound: tuple[Slice, SlotModel] | None = None
        self._precision: Precision = "auto"

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
            received = _with_residents(model, values, self._memory.latest())
            settings = self._prepared(model, received, settings)
            model.load(received, training=False)
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
            memory = self._memory.before(position.round)
            received = _with_residents(model, values, memory)
            settings = self._prepared(model, received, settings)
            trainable = [task for task in model.tasks if model.trained_by(frozenset({task}))]
            if not trainable:
                raise PlanError(f"no slot of the slice may be trained by the client's tasks {sorted(self._data)}")
            # A table that grows has another shape each time, for which a compiled model would be compiled again.
            by_rows = (
                compactable(self._family, model, self._data, trainable)
                if settings.compact_vocabulary and not settings.compile
                else {}
            )
            model.load(received, training=True, in_place={slot.id for slot in by_rows.values()})
            vocabulary = CompactVocabulary(by_rows, model, received, self._data)

            lengths = {task: self._data[task].train.lengths for task in trainable}
            batches = round_batches(lengths, settings, position, seed, client_id)
            total = round_steps(settings, {task: len(rows) for task, rows in lengths.items()})

            dropout_seed = derive_seed(seed, "round", position.round, "client", client_id, "dropout")
            model.dropout.restart(dropout_seed)
            with dropout_stream(self._device, dropout_seed):
                objective = Objective(model, self._family, vocabulary.data(), settings)
                tally = Tally(position, total, progress)
                reports = descend(
                    model, objective, batches, total, settings, position, tally, cancelled, vocabulary=vocabulary
                )
            deltas, own = _changes(model, received, frozenset(reports), position, vocabulary.tables)
            self._memory.keep(position.round, Memory({**memory.tensors, **residents(own)}, memory.numbers))
            return LocalResult(deltas, reports)

    def _bind(self, slice_: Slice) -> SlotModel:
        """The slice's model, the one of the last call when the slice is the same."""
        if self._bound is None or self._bound[0] != slice_:
            tasks = [task for task in self._data if task in slice_.tasks]
            if not tasks:
                raise PlanError(f"the slice of {sorted(slice_.tasks)} has no task of this client's {list(self._data)}")
            self._bound = None  # let the old modules go before the new ones are built
            self._bound = (slice_, SlotModel(self._family, slice_, tasks, self._device))
        return self._bound[1]

    def _prepared(self, model: SlotModel, received: Mapping[str, Tensor], settings: TrainSettings) -> TrainSettings:
        """The settings with ``auto`` resolved, once for all rounds; the model compiled if that is asked."""
        if settings.compile:
            model.compile()
        if settings.precision != "auto":
            return settings
        if self._precision == "auto":
            trained = [task for task in model.tasks if model.trained_by(frozenset({task}))]
            if not trained:  # nothing will be: no backward pass to time
                return settings.model_copy(update={"precision": "fp32"})
            model.load(received, training=True)
            task, split = self._family.tasks[trained[0]], self._data[trained[0]].train
            self._precision = faster_precision(model, task, split, settings.batch_size)
        return settings.model_copy(update={"precision": self._precision})


def _changes(
    model: SlotModel,
    received: Mapping[str, Tensor],
    tasks: frozenset[str],
    position: Position,
    tables: Mapping[str, CompactTable],
) -> tuple[dict[str, Tensor], dict[Slot, Tensor]]:
    """Deltas of the travelling slots that these tasks trained, and the new values of the client's own slots.

    Raises:
        TrainingDiverged: one of them is not finite.
    """
    deltas: dict[str, Tensor] = {}
    own: dict[Slot, Tensor] = {}
    for slot_id, slot in model.trained_by(tasks).items():
        if slot_id in tables:
            value = deltas[slot_id] = tables[slot_id].delta()
            _require_finite(slot_id, value._values(), position)
            continue
        value = model.take(slot_id)
        if slot.residence == "client":
            own[slot] = value
        else:
            value = deltas[slot_id] = value.sub_(received[slot_id])
        _require_finite(slot_id, value, position)
    return deltas, own


def _require_finite(slot_id: str, value: Tensor, position: Position) -> None:
    if not bool(torch.isfinite(value).all()):
        raise TrainingDiverged(
            f"round {position.round}: slot {slot_id!r} is not finite after training. "
            "Lower training.learning_rate, or set training.max_grad_norm."
        )


def _with_residents(model: SlotModel, values: Mapping[str, Tensor], memory: Memory) -> Mapping[str, Tensor]:
    """The received values with the client's own ones put in; a first value may come from the server."""
    own: dict[str, Tensor] = {}
    for slot_id, slot in model.slots.items():
        if slot.residence == "client":
            kept = resident(memory, slot, frozenset(model.tasks))
            if kept is None and slot_id not in values:
                raise PlanError(f"slot {slot_id!r} lives on the client, which has neither kept nor got a value")
            own[slot_id] = values[slot_id] if kept is None else kept
    return {**values, **own} if own else values
