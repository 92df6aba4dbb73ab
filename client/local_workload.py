"""The real workload: this client's data, the model family the server described, local training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from client.device import choose_device, usable_cores
from client.failures import TrainingCancelled, TrainingDiverged
from client.kept_update import run_folder
from client.memory import ClientMemory
from client.memory_folder import MemoryFolder, memory_folder
from client.tally import TaskReport
from client.token_cache import TokenCache
from client.trainer import LocalTrainer, TaskData
from client.trainer import Progress as TrainerProgress
from client.workload import Progress, Received, TrainedUpdate, WorkCancelled, WorkDeclined
from common.data import Shard, SplitName, load_examples, read_once
from common.errors import ConfigError
from common.families import family_from_description
from common.families.base import Family
from common.messages import DataReport, GateReport, TaskContribution, TaskEvaluation, Welcome, Work
from common.plan import Slice
from common.tasks import TaskSpec
from common.tensors import NUMPY_DTYPES, EncodedTensor, encode_tensor
from common.torch_tensors import decode, encode
from common.training import Position, TrainSettings

log = logging.getLogger("fedmtl.client")
Result = TypeVar("Result")
Model = TypeVar("Model", bound=BaseModel)
_SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation")


class LocalWorkload:
    """Trains on rows of this machine.

    Args:
        data: folder that relative paths of the tasks are resolved against, or one file of training rows.
        device: auto, cpu, cuda, cuda:N or mps.
        shard: the part of the rows that is this client's, where several share one source.
        sync: with ``full`` an update also holds the slots that only other tasks train, unchanged.
        threads: CPU threads for tensor operations; None leaves it to the server's settings, and those to the
            cores there are.
        state_dir: where what the client remembers from round to round is kept; None keeps it in memory only.
        cache_dir: where tokenised rows are kept; None keeps none.
    """

    def __init__(
        self,
        data: Path | None,
        device: str = "auto",
        shard: Shard | None = None,
        sync: Literal["slice", "full"] = "slice",
        threads: int | None = None,
        state_dir: Path | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self._path = data
        self._device = choose_device(device)
        self._shard = shard
        self._sync = sync
        self._threads = threads
        self._state_dir = state_dir
        self._tokens = TokenCache(cache_dir)
        self._trainer: LocalTrainer | None = None
        self._seed = 0
        self._client_id = ""

    def prepare(self, welcome: Welcome, assets: Mapping[str, bytes]) -> Mapping[str, DataReport]:
        """Load and check this client's rows, encode them, build the family."""
        specs = {name: _understood(TaskSpec, spec) for name, spec in welcome.specs.items()}
        family = family_from_description(welcome.family, assets, specs)
        self._seed, self._client_id = welcome.seed, welcome.client_id
        memory = ClientMemory(self._memory_folder(welcome))
        with read_once():  # tasks may be labels of the same rows
            loaded = {task: self._load(family, specs[task]) for task in welcome.tasks}
        self._trainer = LocalTrainer(family, {task: data for task, (data, _) in loaded.items()}, self._device, memory)
        log.info("training on %s", self._device)
        return {task: report for task, (_, report) in loaded.items()}

    def _memory_folder(self, welcome: Welcome) -> MemoryFolder | None:
        if self._state_dir is None:
            return None
        path = memory_folder(run_folder(self._state_dir, welcome.client_id, welcome.run_id))
        return MemoryFolder(path, welcome.run_id, welcome.client_id)

    def _load(self, family: Family, spec: TaskSpec) -> tuple[TaskData, DataReport]:
        columns = family.feature_columns
        parts = {
            split: load_examples(spec, split, data=self._path, shard=self._shard, seed=self._seed, columns=columns)
            for split in _SPLITS
        }
        encoded = {split: self._tokens.encode(family, spec.name, examples) for split, examples in parts.items()}
        report = DataReport(
            train=len(parts["train"]), validation=len(parts["validation"]), source=parts["train"].source[:2000]
        )
        log.info(
            "%s: %d training, %d validation examples, %s", spec.name, report.train, report.validation, report.source
        )
        return TaskData(encoded["train"], encoded["validation"]), report

    def evaluate(
        self, work: Work, slice_: Slice, received: Received, cancelled: threading.Event
    ) -> Mapping[str, TaskEvaluation]:
        """Metrics of the received values on the validation rows."""
        settings = self._settings_of(work)
        values = {slot: decode(header, payload) for slot, (header, payload) in received.items()}
        results = self._doing(
            lambda: self._ready().evaluate(slice_, values, settings, cancelled, work.round, work.counted)
        )
        return {
            task: TaskEvaluation(metrics=dict(result.metrics), loss=result.loss, examples=result.examples)
            for task, result in results.items()
        }

    def train(
        self, work: Work, slice_: Slice, received: Received, progress: Progress, cancelled: threading.Event
    ) -> TrainedUpdate:
        """One round of local training."""
        settings = self._settings_of(work)
        values = {slot: decode(header, payload) for slot, (header, payload) in received.items()}

        def report(done: TrainerProgress) -> None:
            progress(done.done_steps, done.total_steps, done.loss)

        result = self._doing(
            lambda: self._ready().train(
                slice_,
                values,
                settings,
                Position(work.round, work.target_rounds),
                self._seed,
                self._client_id,
                report,
                cancelled,
                work.counted,
            )
        )
        tensors = [encode(slot, delta, allow_rows=True) for slot, delta in result.deltas.items()]
        if self._sync == "full":
            tensors += _unchanged(slice_, result.reports.keys())
        contributions = {task: contribution_of(done) for task, done in result.reports.items()}
        return TrainedUpdate(contributions, tensors, result.remembered)

    def _settings_of(self, work: Work) -> TrainSettings:
        given = work.evaluation_settings if work.training is None else work.training
        settings = TrainSettings() if given is None else _understood(TrainSettings, given)
        count = self._threads or settings.threads or usable_cores()
        return settings.model_copy(update={"threads": count})

    def _ready(self) -> LocalTrainer:
        if self._trainer is None:
            raise ConfigError("work came before the data was loaded")
        return self._trainer

    def _doing(self, work: Callable[[], Result]) -> Result:
        """Run training or evaluation; what goes wrong with it is told in the session's terms."""
        try:
            return work()
        except TrainingCancelled as error:
            raise WorkCancelled(str(error)) from error
        except TrainingDiverged as error:
            raise WorkDeclined(str(error)) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise WorkDeclined(f"out of memory on {self._device}: lower training.batch_size ({error})") from error


def contribution_of(done: TaskReport) -> TaskContribution:
    """A task's report as it is sent."""
    gates = {
        name: GateReport(experts=gate.experts, mass=gate.mass, entropy=gate.entropy)
        for name, gate in done.gates.items()
    }
    return TaskContribution(
        num_examples=done.num_examples, num_steps=done.num_steps, loss=done.loss, seconds=done.seconds, gates=gates
    )


def _understood(model: type[Model], data: object) -> Model:
    """What the server sent, as this version of the software knows it."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            f"the server's {model.__name__} is not understood here (is it of another version of fedmtl?): {error}"
        ) from error


def _unchanged(slice_: Slice, tasks: Set[str]) -> list[EncodedTensor]:
    """Zero deltas for the slots of a full synchronisation that only others train; what is frozen never goes up.

    A slot that these tasks may train but left closed (`training.unfreeze`) stays out: its zeros would weigh.
    """
    return [
        encode_tensor(slot.id, np.zeros(slot.shape, NUMPY_DTYPES[slot.dtype]), dtype=slot.dtype)
        for slot in slice_.travelling
        if slot.trained_by and not slot.trained_by & tasks
    ]
