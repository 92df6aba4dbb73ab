"""What a client does with the work it gets; the session that carries messages knows only this interface."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import FedmtlError
from common.messages import DataReport, TaskContribution, TaskEvaluation, TensorHeader, Welcome, Work
from common.plan import Slice
from common.tensors import EncodedTensor

Received = Mapping[str, tuple[TensorHeader, memoryview]]
Progress = Callable[[int, int, float], None]


class WorkDeclined(FedmtlError):
    """This round's work can't be done here; the round goes on without this client."""


class WorkCancelled(FedmtlError):
    """The work was stopped because the round is over."""


@dataclass(frozen=True)
class TrainedUpdate:
    """The result of training.

    Attributes:
        tasks: what was done per task.
        tensors: the deltas, ready for the wire.
        durable_beside: all else that the training changed (what the client remembers) outlives this process.
    """

    tasks: Mapping[str, TaskContribution]
    tensors: Sequence[EncodedTensor]
    durable_beside: bool = True


class Workload(Protocol):
    """Data, model and training of one client. Every method may block and runs off the event loop."""

    def prepare(self, welcome: Welcome, assets: Mapping[str, bytes]) -> Mapping[str, DataReport]:
        """Load data and build the model family; says what was loaded.

        Raises:
            DataError, ConfigError: the data does not fit the tasks.
        """
        ...

    def evaluate(
        self, work: Work, slice_: Slice, received: Received, cancelled: threading.Event
    ) -> Mapping[str, TaskEvaluation]:
        """Metrics of the received values on this client's validation data.

        Raises:
            WorkDeclined, WorkCancelled: see there.
            PlanError: the slice does not fit the model family.
        """
        ...

    def train(
        self, work: Work, slice_: Slice, received: Received, progress: Progress, cancelled: threading.Event
    ) -> TrainedUpdate:
        """Train from the received values; `progress` takes (steps done, steps in all, mean loss).

        Raises:
            WorkDeclined, WorkCancelled: see there.
            PlanError: the slice does not fit the model family.
        """
        ...
