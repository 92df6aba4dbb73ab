"""One client's part of a round: take the slice, train it on the client's own data, return what changed.

Everything random follows from (seed, round, client): a client that is killed and started again redoes the round to
the same bits on the same machine with the same number of threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.batches import round_batches
from client.control_variates import ControlVariates
from client.correction import Correction
from client.descent import descend
from client.device import deterministic, dropout_stream, threads
from client.epochs import AfterEpoch, at_epochs
from client.evaluate import evaluate_tasks
from client.failures import TrainingCancelled, TrainingDiverged
from client.gate_sums import unused
from client.memory import ClientMemory, Memory, resident, residents
from client.objective import Objective
from client.precision import faster_precision
from client.proximal import ProximalTerm
from client.same_rows import with_same_rows
from client.sampling import weakness_of
from client.slot_model import SlotModel
from client.tally import Progress, Tally, TaskReport
from client.time_budget import TimeBudget
from client.unfreezing import openings
from client.vocabulary import CompactVocabulary, compactable
from common.control_variates import control_slots, is_control, without_controls
from common.errors import PlanError
from common.metrics import Evaluation
from common.plan import Slice, Slot
from common.seeds import derive_seed
from common.torch_tensors import fingerprint
from common.training import Position, Precision, TrainSettings, round_steps, shares_rows

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

log = logging.getLogger("fedmtl.client")
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
            travelling slots that a task in `reports` may train and that were open in the last step, but for experts
            to which no gate has sent an example. Rows of an
            embedding table that no example touched are exactly zero; of a table that was kept compact the others come
            as a sparse tensor, coalesced, with one sparse dimension. With SCAFFOLD also what the control variates of
            those slots change by.
        reports: the tasks that took at least one step (with fewer steps than tasks, not all do).
        remembered: whether what the client remembers of the round outlives this process.
    """

    deltas: dict[str, Tensor]
    reports: dict[str, TaskReport]
    remembered: bool = True


class LocalTrainer:
    """Trains and evaluates the slices of one client. One piece of work at a time per process; others wait.

    Memory while training: a slice's trainable slots three times (value, gradient, delta) plus twice for AdamW.

    Args:
        family: builds the modules.
        data: the client's tasks and their rows.
        device: where to compute.
        memory: what the client remembers; a new one, in RAM only, when left out.
        clock: measures a round's time budget, in seconds.
    """

    def __init__(
        self,
        family: Family,
        data: Mapping[str, TaskData],
        device: torch.device,
        memory: ClientMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._family = family
        self._data = dict(data)
        self._device = device
        self._clock = clock
        self._memory = ClientMemory() if memory is None else memory
        self._bound: tuple[Slice, SlotModel] | None = None
        self._last_results: tuple[tuple[TrainSettings, str], dict[str, Evaluation]] | None = None
        self._precision: Precision = "auto"
        self._sharing: set[tuple[str, ...]] = set()

    def evaluate(
        self,
        slice_: Slice,
        values: Mapping[str, Tensor],
        settings: TrainSettings,
        cancelled: threading.Event | None = None,
        before_round: int | None = None,
        counted: int | None = None,
    ) -> dict[str, Evaluation]:
        """Results of the given values on the client's validation data, for each task that has some.

        Args:
            slice_: what the client holds.
            values: slot id to received value; left as they are.
            settings: batch size, precision, threads.
            cancelled: checked before every batch.
            before_round: the client's own slots have the values from which it trains this round; None: those of now.
            counted: with it, see `ClientMemory.before`.

        Raises:
            PlanError: slice or values don't fit the family.
            DataError: `training.same_rows` is set, and the tasks' training rows are not the same.
            TrainingDiverged: the model's outputs are not finite.
            TrainingCancelled: `cancelled` was set.
        """
        with _TURN, threads(settings.threads), deterministic(settings.deterministic):
            model = self._bind(slice_)
            self._share_rows(model, settings)
            memory = self._memory.latest() if before_round is None else self._memory.before(before_round, counted)
            received = _with_residents(model, values, memory)
            return self._evaluated(model, received, self._prepared(model, received, settings), cancelled)

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
        counted: int | None = None,
        after_epoch: AfterEpoch | None = None,
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
            counted: the newest round of which the server has taken this client's update, see `ClientMemory.before`.
            after_epoch: called after each whole epoch with its number, from 1, and the model in evaluation mode, such
                as `client.evaluate.evaluate_task` takes it; True ends the round, which is reported as far as it went.
                It must neither change the model nor draw from torch's random stream, and its time counts for
                `max_seconds`. Embedding tables are then trained whole (no `compact_vocabulary`).

        Raises:
            PlanError: slice or values don't fit the family, or nothing in the slice may be trained, or at its beginning
                `training.unfreeze` opens nothing of a task.
            DataError: `training.same_rows` is set, and the tasks' rows are not the same.
            TrainingDiverged: a loss or a delta is not finite; nothing of the round is kept.
            TrainingCancelled: `cancelled` was set; nothing of the round is kept.
        """
        with _TURN, threads(settings.threads), deterministic(settings.deterministic):
            model = self._bind(slice_)
            memory = self._memory.before(position.round, counted)
            _tell_of_lost_memory(slice_, memory, counted)
            received = _with_residents(model, values, memory)
            settings = self._prepared(model, received, settings)
            trainable = model.trainers()
            if not trainable:
                raise PlanError(f"no parameter of the slice may be trained by the client's tasks {sorted(self._data)}")
            self._share_rows(model, settings)
            lengths = {task: self._data[task].train.lengths for task in trainable}
            weakness = self._weakness(model, trainable, received, settings, cancelled)
            if after_epoch is not None:
                settings = settings.model_copy(update={"compact_vocabulary": False})
            vocabulary = self._load_for_training(model, slice_, received, settings, trainable)
            batches = round_batches(lengths, settings, position, seed, client_id, weakness)
            sizes = {task: len(rows) for task, rows in lengths.items()}
            total = round_steps(settings, sizes)
            stages, budget = openings(model, settings, sizes), TimeBudget(settings.max_seconds, self._clock)

            with self._dropout(model, derive_seed(seed, "round", position.round, "client", client_id, "dropout")):
                corrections, controls = _corrections(model, slice_, received, memory, settings, vocabulary)
                objective = Objective(model, self._family, vocabulary.data(), settings, trainable, memory.numbers)
                tally = Tally(position, total, progress)
                reports = descend(
                    *(model, objective, batches, total, settings, position, tally, cancelled),
                    corrections=corrections,
                    openings=stages,
                    budget=budget,
                    vocabulary=vocabulary,
                    after_step=None if after_epoch is None else at_epochs(after_epoch, model, settings, sizes),
                )
            deltas, own = _changes(model, received, reports, vocabulary)
            if controls is not None:
                control_deltas, own_controls = controls.changes(deltas)
                deltas, own = {**deltas, **control_deltas}, {**own, **own_controls}
            _require_finite(deltas, own, position)
            numbers = {**memory.numbers, **objective.numbers(reports)}
            if _remembers(slice_):  # also where all of it is frozen yet: that nothing has changed is not forgotten
                numbers["round"] = float(position.round)
            now = Memory({**memory.tensors, **residents(own)}, numbers)
            return LocalResult(deltas, reports, self._memory.keep(position.round, now, counted))

    def _share_rows(self, model: SlotModel, settings: TrainSettings) -> None:
        """With `same_rows`, make sure, once, that the model's tasks have the same rows, and keep them once."""
        if shares_rows(settings, model.tasks) and model.tasks not in self._sharing:
            self._data |= with_same_rows({task: self._data[task] for task in model.tasks})
            self._sharing.add(model.tasks)

    def _load_for_training(
        self,
        model: SlotModel,
        slice_: Slice,
        received: Mapping[str, Tensor],
        settings: TrainSettings,
        tasks: Sequence[str],
    ) -> CompactVocabulary:
        """Load the model; the result says of which tables only the rows that batches touch are trained."""
        # A table that grows has another shape each time, for which a compiled model would be compiled again; and
        # SCAFFOLD's correction moves rows that no batch of this client touches.
        compact = settings.compact_vocabulary and not settings.compile and not control_slots(slice_)
        by_rows = compactable(self._family, model, self._data, tasks) if compact else {}
        model.load(received, training=True, in_place={slot.id for slot in by_rows.values()})
        return CompactVocabulary(by_rows, model, received, self._data)

    @contextmanager
    def _dropout(self, model: SlotModel, seed: int) -> Iterator[None]:
        """Draw dropout from this seed inside."""
        model.dropout.restart(seed)
        with dropout_stream(self._device, seed):
            yield

    def _evaluated(
        self,
        model: SlotModel,
        values: Mapping[str, Tensor],
        settings: TrainSettings,
        cancelled: threading.Event | None,
    ) -> dict[str, Evaluation]:
        """Results on the validation data; where the sampling may ask again for the same values, not computed twice."""
        key = None
        if settings.task_sampling == "performance":
            key = (settings, fingerprint({slot: values[slot] for slot in model.slots if slot in values}))
            if self._last_results is not None and self._last_results[0] == key:
                return self._last_results[1]
        model.load(values, training=False)
        held_out = {task: split for task in model.tasks if (split := self._data[task].validation) is not None}
        specs = [self._family.tasks[task] for task in held_out]
        results = evaluate_tasks(model, specs, held_out, settings, cancelled)
        if key is not None:
            self._last_results = (key, results)
        return results

    def _weakness(
        self,
        model: SlotModel,
        tasks: Sequence[str],
        received: Mapping[str, Tensor],
        settings: TrainSettings,
        cancelled: threading.Event,
    ) -> dict[str, float] | None:
        """How weak the received values are at each task with validation data, where the sampling wants to know."""
        if settings.task_sampling != "performance" or len(tasks) < 2:
            return None
        results = self._evaluated(model, received, settings, cancelled)
        return {
            task: weakness_of(self._family.tasks[task], results[task], held_out.labels)
            for task in tasks
            if (held_out := self._data[task].validation) is not None
        }

    def _bind(self, slice_: Slice) -> SlotModel:
        """The slice's model, the one of the last call when the slice is the same."""
        if self._bound is None or self._bound[0] != slice_:
            tasks = [task for task in self._data if task in slice_.tasks]
            if not tasks:
                raise PlanError(f"the slice of {sorted(slice_.tasks)} has no task of this client's {list(self._data)}")
            self._bound = self._last_results = None  # let the old modules go before the new ones are built
            self._bound = (slice_, SlotModel(self._family, without_controls(slice_), tasks, self._device))
        return self._bound[1]

    def _prepared(self, model: SlotModel, received: Mapping[str, Tensor], settings: TrainSettings) -> TrainSettings:
        """The settings with ``auto`` resolved, once for all rounds; the model compiled if that is asked."""
        if settings.compile:
            model.compile()
        if settings.precision != "auto":
            return settings
        if self._precision == "auto":
            trained = model.trainers()
            if not trained:  # nothing will be: no backward pass to time
                return settings.model_copy(update={"precision": "fp32"})
            model.load(received, training=True)
            task, split = self._family.tasks[trained[0]], self._data[trained[0]].train
            self._precision = faster_precision(model, task, split, settings.batch_size)
        return settings.model_copy(update={"precision": self._precision})


def _changes(
    model: SlotModel,
    received: Mapping[str, Tensor],
    reports: Mapping[str, TaskReport],
    vocabulary: CompactVocabulary,
) -> tuple[dict[str, Tensor], dict[Slot, Tensor]]:
    """Deltas of the travelling slots that these tasks trained, and the new values of the client's own slots.

    What was not open in the last step never was: it has no delta, and the client no say in it. Nor has an expert to
    which no gate has sent an example: it keeps its value, which weight decay or a correction may have moved here.
    """
    gates = {task: report.gates for task, report in reports.items()}
    deltas: dict[str, Tensor] = {}
    own: dict[Slot, Tensor] = {}
    for slot_id, slot in model.trained_by(frozenset(reports)).items():
        if not model.is_open(slot_id) or unused(slot, gates):
            continue
        if slot_id in vocabulary.tables:
            deltas[slot_id] = vocabulary.tables[slot_id].delta()
            continue
        value = model.take(slot_id)
        if slot.residence == "client":
            own[slot] = value
        else:
            deltas[slot_id] = value.sub_(received[slot_id])
    return deltas, own


def _require_finite(deltas: Mapping[str, Tensor], own: Mapping[Slot, Tensor], position: Position) -> None:
    """Raises TrainingDiverged where something that a round has changed is not finite."""
    for slot_id, value in (*deltas.items(), *((slot.id, value) for slot, value in own.items())):
        if not bool(torch.isfinite(value._values() if value.is_sparse else value).all()):
            raise TrainingDiverged(
                f"round {position.round}: slot {slot_id!r} is not finite after training. "
                "Lower training.learning_rate, or set training.max_grad_norm."
            )


def _corrections(
    model: SlotModel,
    slice_: Slice,
    received: Mapping[str, Tensor],
    memory: Memory,
    settings: TrainSettings,
    vocabulary: CompactVocabulary,
) -> tuple[list[Correction], ControlVariates | None]:
    """What changes each step's gradients, in order, and the one of them that has something to send afterwards."""
    corrections: list[Correction] = []
    if settings.proximal:
        corrections.append(ProximalTerm(model, received, settings.proximal, vocabulary.tables))
    pairs = control_slots(slice_)
    if not pairs:
        return corrections, None
    controls = ControlVariates(model, pairs, received, memory, settings)
    return [*corrections, controls], controls


def _remembers(slice_: Slice) -> bool:
    """Whether a client has values of its own, beside the model, that go from round to round."""
    return any(slot.residence == "client" or is_control(slot.spec) for slot in slice_.slots)


def _tell_of_lost_memory(slice_: Slice, memory: Memory, counted: int | None) -> None:
    """Say so where a client that has taken part begins again from nothing."""
    if _remembers(slice_) and counted and not memory:
        log.warning(
            "the server has counted this client's update of round %d, of which nothing is remembered here (another "
            "--state-dir?): what stays on this client begins anew, from the server's first values",
            counted,
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
