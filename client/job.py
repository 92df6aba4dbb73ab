"""One piece of work under way or done, and what came of it; kept until the server wants nothing more of it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from client.kept_update import Assignment
from client.workload import TrainedUpdate
from common.messages import Declined, EvaluationReport, UpdateHeader, Work


@dataclass
class Job:
    """Work, and its results as they come.

    Attributes:
        work: what the server asked for.
        assignment: by which its update is kept on disk; None where it is in memory only.
        cancelled: set when nobody wants the results any more.
        task: does the work.
        evaluation: the report, once made.
        update: the update, once trained and until the server has acknowledged or refused it.
        declined: why no update comes, where none does.
    """

    work: Work
    assignment: Assignment | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None
    evaluation: EvaluationReport | None = None
    update: TrainedUpdate | None = None
    declined: Declined | None = None

    def answers(self, work: Work) -> bool:
        """Whether what came, or is still to come, of this job is what `work` asks for, so that nothing is done twice.

        The server asks again after a broken connection, and when a round is repeated.
        """
        if self.cancelled.is_set() or _identity(work) != _identity(self.work):
            return False
        running = self.task is not None and not self.task.done()
        evaluates = self.evaluation is not None or (running and self.work.evaluate)
        trains = work.training == self.work.training and (
            self.update is not None or self.declined is not None or running
        )
        return (evaluates or not work.evaluate) and (trains or work.training is None)

    def header(self, stream: int) -> UpdateHeader:
        """The announcement of the update, which must be there."""
        assert self.update is not None
        return announcement(self.work, self.update, stream)


def announcement(work: Work, update: TrainedUpdate, stream: int) -> UpdateHeader:
    """What is said before an update is sent, and written before it is kept."""
    return UpdateHeader(
        run_id=work.run_id,
        round=work.round,
        version=work.version,
        plan=work.plan,
        base=work.base,
        stream=stream,
        tasks=dict(update.tasks),
        tensors=tuple(tensor.header for tensor in update.tensors),
    )


def _identity(work: Work) -> tuple[str, int, int, str, str]:
    # The base too: a version that is made again after a crash may come out otherwise.
    return (work.run_id, work.round, work.version, work.plan, work.base)
