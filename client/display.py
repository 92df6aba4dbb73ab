"""What a person sees of local work: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from client.workload import TrainedUpdate
from common.messages import TaskEvaluation

log = logging.getLogger("fedmtl.client")


class Display:
    """Shows evaluations and training; a bar only where standard error is a terminal."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._terminal = sys.stderr.isatty() if terminal is None else terminal

    def evaluated(self, version: int, results: Mapping[str, TaskEvaluation]) -> None:
        """A version was evaluated on this client's validation data."""
        for task, result in results.items():
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
            log.info(
                "version %d on %d examples of %s: %s  loss %.4f", version, result.examples, task, metrics, result.loss
            )

    def round_started(self, round_id: int, target_rounds: int) -> None:
        """Training begins."""
        self.close()
        self._title = f"round {round_id}/{target_rounds}"
        if self._terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None, loss=0.0)

    def progress(self, done: int, total: int, loss: float) -> None:
        """Training is under way."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, loss=loss)

    def round_trained(self, round_id: int, update: TrainedUpdate) -> None:
        """Training is done."""
        self.close()
        nbytes = sum(tensor.header.nbytes for tensor in update.tensors)
        for task, done in update.tasks.items():
            log.info(
                "round %d: %s trained on %d examples in %d steps, loss %.4f, %.1f s",
                *(round_id, task, done.num_examples, done.num_steps, done.loss, done.seconds),
            )
        log.info("round %d: sending %d tensors, %.2f MB", round_id, len(update.tensors), nbytes / 1e6)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
