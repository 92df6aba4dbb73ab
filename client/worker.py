"""Does the work that comes, and tells what came of it over whatever connection there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final, ParamSpec

from client.display import Display
from client.job import Job, announcement
from client.kept_update import Assignment, KeptUpdates
from client.workload import Received, TrainedUpdate, WorkCancelled, WorkDeclined, Workload
from common.errors import PlanError, Refused
from common.failpoints import failpoint
from common.log_context import bind_log_context, with_log_context
from common.messages import Declined, EvaluationReport, Message, Progress, Work
from common.outbox import Outbox, OutboxFull
from common.plan import Slice
from common.stream import chunk_frames

log = logging.getLogger("fedmtl.client")
#: Refusals of an update that leave it worth keeping: the server will ask for it, or may ask again.
KEEP_UPDATE: Final = frozenset({"future_round", "internal", "too_many_updates"})
#: More progress reports than this do not wait for a slow connection.
MAX_WAITING_REPORTS: Final = 16
P = ParamSpec("P")


class Worker:
    """One job at a time. Training goes on while there is no connection; what came of it is kept in the job.

    A finished update is also kept on disk, from before it is sent until the server has acknowledged or refused it.

    Args:
        workload: data, model and training.
        display: shows progress to a person.
        thread: the one thread on which the workload runs. Allocators keep freed memory per thread, so a pool
            would keep the largest batch once for each of its threads.
        fail: ends the session with an error of our own.
        kept: the updates on disk; None keeps them in memory only.
    """

    def __init__(
        self,
        workload: Workload,
        display: Display,
        thread: Executor,
        fail: Callable[[Exception], None],
        kept: KeptUpdates | None = None,
    ) -> None:
        self._workload = workload
        self._thread = thread
        self._display = display
        self._fail = fail
        self._kept = kept
        # One thread, so that files are written and removed in the order in which it was decided.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="fedmtl-disk")
        self._circumstances = ""
        self._job: Job | None = None
        self._outbox: Outbox | None = None
        self._chunk_bytes = 0
        self._stream = 0

    # --- the connection

    def attach(self, outbox: Outbox, chunk_bytes: int, circumstances: str) -> None:
        """The server knows that we are ready: an update that it has not acknowledged is sent again.

        Args:
            outbox: of the connection.
            chunk_bytes: most bytes of data per chunk.
            circumstances: what decides updates beside the work, see `client.kept_update`.
        """
        self._outbox, self._chunk_bytes, self._circumstances = outbox, chunk_bytes, circumstances
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
            failpoint("client.acknowledged")
            self._forget_update(job)
            self._forget_kept(job)

    def rejected(self, code: str, reason: str, round_id: int | None) -> None:
        """The server does not take the update of a round."""
        log.warning("the server refused the update of round %s (%s): %s", round_id, code, reason)
        if self._job is not None and self._job.work.round == round_id and code not in KEEP_UPDATE:
            self._forget_update(self._job)
            self._forget_kept(self._job)

    def round_closed(self, round_id: int, reason: str) -> None:
        """Nobody waits for this round's results any more.

        What is kept on disk stays until there is work for a later round: this one may be repeated.
        """
        log.info("round %d is over: %s", round_id, reason)
        if self._job is not None and self._job.work.round == round_id:
            self._job.cancelled.set()
            self._forget_update(self._job)

    def run_over(self, run_id: str) -> None:
        """The run has reached its end: nothing kept for it is of use."""
        if self._kept is not None:
            self._on_disk(self._kept.forget_run, run_id)

    def _forget_update(self, job: Job) -> None:
        job.update = None
        if self._outbox is not None:
            self._outbox.drop_transfers()

    def _forget_kept(self, job: Job) -> None:
        if self._kept is not None and job.assignment is not None:
            self._on_disk(self._kept.forget, job.assignment)

    def _on_disk(self, function: Callable[P, None], *arguments: P.args, **keywords: P.kwargs) -> None:
        """Do something on disk after what was to be done before it; nobody waits for it."""
        self._disk.submit(function, *arguments, **keywords).add_done_callback(_tell_of_error)

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

    def close(self) -> None:
        """Wait until the disk has everything; blocks."""
        self._disk.shutdown(wait=True)
        if self._kept is not None:
            self._kept.close()

    async def _do(self, job: Job, received: Received, before: asyncio.Task[None] | None) -> None:
        """Evaluate, then train, as the work says; runs beside the connection and survives it."""
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        round_id = job.work.round
        bind_log_context(round=round_id)
        try:
            slice_ = Slice.from_dict(job.work.slice)
            self._assign(job)
            await self._evaluate_and_train(job, slice_, received)
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

    def _assign(self, job: Job) -> None:
        """Say by which name the update is kept on disk, and remove from there what this work makes useless."""
        if self._kept is None:
            return
        if job.work.training is not None:
            job.assignment = Assignment.of(job.work, self._circumstances)
        self._on_disk(self._kept.prune, job.work.run_id, job.work.round, job.assignment)

    async def _evaluate_and_train(self, job: Job, slice_: Slice, received: Received) -> None:
        work, run = job.work, asyncio.get_running_loop().run_in_executor
        if work.evaluate and not job.cancelled.is_set():
            evaluate = with_log_context(self._workload.evaluate)
            results = await run(self._thread, evaluate, work, slice_, received, job.cancelled)
            job.evaluation = EvaluationReport(round=work.round, version=work.version, tasks=dict(results))
            self._display.evaluated(work.version, results)
            failpoint("client.evaluated")
            self._tell(job.evaluation)
        if work.training is not None and not job.cancelled.is_set():
            update = await self._find(job) or await self._train_and_keep(job, slice_, received)
            if not job.cancelled.is_set():
                job.update = update
                self._send_update(job)

    async def _find(self, job: Job) -> TrainedUpdate | None:
        """The update that an earlier life of this client has made and kept."""
        if self._kept is None or job.assignment is None:
            return None
        found = await asyncio.get_running_loop().run_in_executor(self._disk, self._kept.find, job.assignment)
        if found is not None:
            log.info("round %d: the update kept on disk is sent, nothing is trained again", job.work.round)
        return found

    async def _train_and_keep(self, job: Job, slice_: Slice, received: Received) -> TrainedUpdate:
        work, run = job.work, asyncio.get_running_loop().run_in_executor
        self._display.round_started(work.round, work.target_rounds)
        report = self._progress_reporter(work.round)
        train = with_log_context(self._workload.train)
        update = await run(self._thread, train, work, slice_, received, report, job.cancelled)
        self._display.round_trained(work.round, update)
        failpoint("client.trained")
        # An update without what this client remembers of the round would not be the whole of what the training did.
        if self._kept is not None and job.assignment is not None and update.durable_beside:
            await run(self._disk, self._kept.keep, job.assignment, announcement(work, update, 0), update)
        return update

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
        count = sum(-(-tensor.header.nbytes // self._chunk_bytes) for tensor in job.update.tensors)
        self._outbox.put_transfer(_with_failpoints(frames, count), replace=True)


def _with_failpoints(frames: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The frames of an update, each asked for when the one before has been sent."""
    failpoint("client.update_announced")
    for number, frame in enumerate(frames):
        if number == count // 2:
            failpoint("client.update_half_sent")
        yield frame
    failpoint("client.update_sent")


def _tell_of_error(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        log.error("what is kept on disk is not in order", exc_info=error)
