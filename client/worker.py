"""Does the work that comes, and tells what came of it over whatever connection there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from client.display import Display
from client.job import Job
from client.workload import Received, WorkCancelled, WorkDeclined, Workload
from common.errors import PlanError, Refused
from common.log_context import bind_log_context, with_log_context
from common.messages import Declined, EvaluationReport, Message, Progress, Work
from common.outbox import Outbox, OutboxFull
from common.plan import Slice
from common.stream import chunk_frames

log = logging.getLogger("fedmtl.client")
#: Refusals of an update that leave it worth keeping: the server will ask for it, or may ask again.
KEEP_UPDATE: Final = frozenset({"future_round", "internal"})
#: More progress reports than this do not wait for a slow connection.
MAX_WAITING_REPORTS: Final = 16


class Worker:
    """One job at a time. Training goes on while there is no connection; what came of it is kept in the job.

    Args:
        workload: data, model and training.
        display: shows progress to a person.
        thread: the one thread on which the workload runs. Allocators keep freed memory per thread, so a pool
            would keep the largest batch once for each of its threads.
        fail: ends the session with an error of our own.
    """

    def __init__(
        self, workload: Workload, display: Display, thread: Executor, fail: Callable[[Exception], None]
    ) -> None:
        self._workload = workload
        self._thread = thread
        self._display = display
        self._fail = fail
        self._job: Job | None = None
        self._outbox: Outbox | None = None
        self._chunk_bytes = 0
        self._stream = 0

    # --- the connection

    def attach(self, outbox: Outbox, chunk_bytes: int) -> None:
        """The server knows that we are ready: an update that it has not acknowledged is sent again."""
        self._outbox, self._chunk_bytes = outbox, chunk_bytes
        if self._job is not None and self._job.update is not None:
            self._send_update(self._job)

    def detach(self) -> None:
        """The connection is gone. What would be said is kept where it matters, and said when the server asks again."""
        self._outbox = None

    # --- what the server says

    def acknowledged(self, digest: str) -> None:
        """The update of this digest is safe with the server."""
        job = self._job
        if job is not None and job.update is not None and job.header(0).digest == digest:
            self._forget_update(job)

    def rejected(self, code: str, reason: str, round_id: int | None) -> None:
        """The server does not take the update of a round."""
        log.warning("the server refused the update of round %s (%s): %s", round_id, code, reason)
        if self._job is not None and self._job.work.round == round_id and code not in KEEP_UPDATE:
            self._forget_update(self._job)

    def round_closed(self, round_id: int, reason: str) -> None:
        """Nobody waits for this round's results any more."""
        log.info("round %d is over: %s", round_id, reason)
        if self._job is not None and self._job.work.round == round_id:
            self._job.cancelled.set()
            self._forget_update(self._job)

    def _forget_update(self, job: Job) -> None:
        job.update = None
        if self._outbox is not None:
            self._outbox.drop_transfers()

    def _tell(self, message: Message) -> None:
        """Send a message of a job, if there is a connection for it."""
        if self._outbox is None:
            return
        if isinstance(message, Progress) and self._outbox.waiting > MAX_WAITING_REPORTS:
            return
        try:
            self._outbox.put(message)
        except OutboxFull as error:
            log.warning("leaving the connection: %s", error)
            self._outbox.close()

    # --- work

    def begin(self, work: Work, received: Received) -> None:
        """Do this work in place of any other, unless it is what is being done or done already."""
        if self._job is not None and self._job.answers(work):
            self._answer_again(self._job, work)
            return
        before = self.drop()
        self._job = job = Job(work)
        job.task = asyncio.create_task(self._do(job, received, before))

    def _answer_again(self, job: Job, work: Work) -> None:
        """The server asks again for what is under way or done."""
        if work.evaluate and job.evaluation is not None:
            self._tell(job.evaluation)
        if work.training is None:
            return
        if job.update is not None:
            self._send_update(job)
        elif job.declined is not None:
            self._tell(job.declined)

    def drop(self) -> asyncio.Task[None] | None:
        """Call the job off; returns what still runs of it."""
        job, self._job = self._job, None
        if job is None:
            return None
        job.cancelled.set()
        return job.task

    async def _do(self, job: Job, received: Received, before: asyncio.Task[None] | None) -> None:
        """Evaluate, then train, as the work says; runs beside the connection and survives it."""
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        round_id = job.work.round
        bind_log_context(round=round_id)
        try:
            await self._evaluate_and_train(job, Slice.from_dict(job.work.slice), received)
        except WorkCancelled:
            log.info("round %d: stopped, it is over", round_id)
        except WorkDeclined as error:
            log.warning("round %d: %s", round_id, error)
            job.declined = Declined(round=round_id, reason=str(error)[:2000])
            if not job.cancelled.is_set():
                self._tell(job.declined)
        except PlanError as error:
            self._fail(Refused("plan_mismatch", str(error)))
        except Exception as error:  # noqa: BLE001  # whatever went wrong here must end the client, not hang the round
            self._fail(error)
        finally:
            self._display.close()

    async def _evaluate_and_train(self, job: Job, slice_: Slice, received: Received) -> None:
        work, run = job.work, asyncio.get_running_loop().run_in_executor
        if work.evaluate and not job.cancelled.is_set():
            evaluate = with_log_context(self._workload.evaluate)
            results = await run(self._thread, evaluate, work, slice_, received, job.cancelled)
            job.evaluation = EvaluationReport(round=work.round, version=work.version, tasks=dict(results))
            self._display.evaluated(work.version, results)
            self._tell(job.evaluation)
        if work.training is not None and not job.cancelled.is_set():
            self._display.round_started(work.round, work.target_rounds)
            report = self._progress_reporter(work.round)
            train = with_log_context(self._workload.train)
            update = await run(self._thread, train, work, slice_, received, report, job.cancelled)
            self._display.round_trained(work.round, update)
            if not job.cancelled.is_set():
                job.update = update
                self._send_update(job)

    def _progress_reporter(self, round_id: int) -> Callable[[int, int, float], None]:
        """What the training thread may call."""
        loop = asyncio.get_running_loop()

        def show(done: int, total: int, loss: float) -> None:
            self._display.progress(done, total, loss)
            self._tell(Progress(round=round_id, done_steps=done, total_steps=total, loss=loss))

        def report(done: int, total: int, loss: float) -> None:
            loop.call_soon_threadsafe(show, done, total, loss)

        return report

    def _send_update(self, job: Job) -> None:
        """Announce the update and let its chunks follow, if there is a connection for it."""
        if self._outbox is None:
            return
        assert job.update is not None
        self._stream += 1
        self._tell(job.header(self._stream))
        frames = chunk_frames(self._stream, job.update.tensors, self._chunk_bytes)
        self._outbox.put_transfer(frames, replace=True)
