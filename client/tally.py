"""Counts what a round's steps have done. Losses are summed on the device, which is waited for only when one is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from client.failures import TrainingDiverged
from client.gate_sums import GateReport, GateSums
from common.training import Position

__all__ = ["GateReport", "Progress", "Tally", "TaskReport"]

#: Seconds between two progress reports; each waits for the device once.
PROGRESS_INTERVAL_S: Final = 0.5


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
        num_steps: optimiser steps that held examples of the task, at least 1.
        loss: mean training loss per example over those steps.
        seconds: time spent in those steps, shared among the tasks of a step by their examples (on CUDA the time to
            launch them, which evens out over a round).
        gates: gate to what it did with the task's examples, for a model with experts.
    """

    num_examples: int
    num_steps: int
    loss: float
    seconds: float
    gates: Mapping[str, GateReport] = field(default_factory=dict)


@dataclass
class _Sum:
    examples: int
    steps: int
    seconds: float
    loss: Tensor


class Tally:
    """The books of one round's training.

    Args:
        position: the round.
        total: its optimiser steps.
        progress: called by `report`.
    """

    def __init__(self, position: Position, total: int, progress: Callable[[Progress], None]) -> None:
        self._position, self._total, self._progress = position, total, progress
        self._sums: dict[str, _Sum] = {}
        self._steps = 0
        self._started = self._reported = time.perf_counter()

    def add(self, losses: Mapping[str, tuple[Tensor, int]], seconds: float) -> None:
        """Count a step.

        Args:
            losses: task to the sum of its examples' losses, a scalar on the device, and their number.
            seconds: what the step took.
        """
        self._steps += 1
        examples = sum(count for _, count in losses.values())
        for task, (loss, count) in losses.items():
            known = self._sums.get(task)
            share = seconds * count / examples
            if known is None:
                self._sums[task] = _Sum(count, 1, share, loss.detach().float())
            else:
                known.examples += count
                known.steps += 1
                known.seconds += share
                known.loss = known.loss + loss.detach()

    def report_sometimes(self) -> None:
        """Report after the last step, and when the last report is a while ago."""
        if self._steps == self._total or time.perf_counter() - self._reported >= PROGRESS_INTERVAL_S:
            self.report()

    def report(self) -> None:
        """Tell the progress, after a look at the losses.

        Raises:
            TrainingDiverged: a sum of losses is not finite; once it isn't, it never is again.
        """
        losses = {task: float(done.loss) for task, done in self._sums.items()}
        examples = sum(done.examples for done in self._sums.values())
        for task, loss in losses.items():
            if not abs(loss) < float("inf"):
                raise TrainingDiverged(
                    f"round {self._position.round}: the loss of task {task!r} is not finite within the first "
                    f"{self._steps} steps. Lower training.learning_rate, or set training.max_grad_norm."
                )
        self._reported = time.perf_counter()
        speed = examples / (self._reported - self._started) if examples else 0.0
        self._progress(Progress(self._steps, self._total, sum(losses.values()) / max(1, examples), speed))

    def reports(self, gates: GateSums | None = None) -> dict[str, TaskReport]:
        """What was done for each task that took part in a step, and by the gates of a model that has some."""
        used = {} if gates is None else gates.reports({task: done.examples for task, done in self._sums.items()})
        return {
            task: TaskReport(
                done.examples, done.steps, float(done.loss) / done.examples, done.seconds, used.get(task, {})
            )
            for task, done in self._sums.items()
        }
