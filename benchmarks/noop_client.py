# ruff: noqa: ARG002  # the interface gives more than a constant answer needs
"""A client process of no work: the real session, and a workload that returns constant deltas at once."""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.display import Display
from client.frozen_values import FrozenValues
from client.session import Identity, Session
from client.workload import Progress, Received, TrainedUpdate
from common.event_loop import loop_factory
from common.messages import DataReport, TaskContribution, TaskEvaluation, Welcome, Work
from common.plan import Slice
from common.tensors import NUMPY_DTYPES, EncodedTensor, encode_tensor


class ConstantWorkload:
    """Answers every round with the same dense deltas, encoded once: no training, no torch.

    Args:
        seconds: how long to pretend to train.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._tensors: tuple[EncodedTensor, ...] = ()
        self._metrics: dict[str, Any] = {}

    def prepare(self, welcome: Welcome, assets: Mapping[str, bytes]) -> Mapping[str, DataReport]:
        """No data: pretend to 100 rows."""
        self._metrics = {task: welcome.specs[task]["metrics"] for task in welcome.tasks}
        return {task: DataReport(train=100, validation=10, source="no data") for task in welcome.tasks}

    def evaluate(
        self, work: Work, slice_: Slice, received: Received, cancelled: threading.Event
    ) -> Mapping[str, TaskEvaluation]:
        """The same for every version."""
        return {
            task: TaskEvaluation(metrics=dict.fromkeys(metrics, 0.5), loss=1.0, examples=10)
            for task, metrics in self._metrics.items()
        }

    def train(
        self,
        work: Work,
        slice_: Slice,
        received: Received,
        progress: Progress,
        cancelled: threading.Event,
    ) -> TrainedUpdate:
        """The constant update."""
        cancelled.wait(self._seconds)
        if not self._tensors:
            self._tensors = tuple(
                encode_tensor(slot.id, np.full(slot.shape, 1e-6, NUMPY_DTYPES[slot.dtype])) for slot in slice_.trainable
            )
        done = TaskContribution(num_examples=100, num_steps=1, loss=0.0, seconds=0.0)
        return TrainedUpdate(dict.fromkeys(sorted(slice_.tasks), done), self._tensors)


def take_part(server: str, client_id: str, task: str, *, state_dir: Path | None = None, seconds: float = 0.0) -> None:
    """Be a client of the server at ``ws://HOST:PORT/ws`` until the run is over.

    Args:
        server: the address.
        client_id: who it is.
        task: its task.
        state_dir: where frozen slots are kept; None keeps none.
        seconds: how long to pretend to train.
    """
    identity = Identity(server, client_id, (task,), reconnect_s=10.0)
    frozen = FrozenValues(state_dir) if state_dir is not None else None
    session = Session(identity, ConstantWorkload(seconds), Display(terminal=False), frozen=frozen)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(session.run())


def main() -> None:
    """Take part as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client-id", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    given = parser.parse_args()
    take_part(given.server, given.client_id, given.task, state_dir=given.state_dir, seconds=given.seconds)


if __name__ == "__main__":
    main()
