"""The client's side of the federation protocol: connect, introduce, take work, send what came of it, come back.

A session outlives its connections: training goes on while the network is away, and a finished update
is kept until the server has acknowledged it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import websockets
from websockets.asyncio.client import ClientConnection, connect

from client.backoff import Backoff
from client.display import Display
from client.workload import Received, TrainedUpdate, WorkCancelled, WorkDeclined, Workload
from common.errors import ConfigError, FedmtlError, PlanError, ProtocolError, Refused, RunFailed
from common.messages import (
    PROTOCOL_VERSION,
    Asset,
    Chunk,
    Declined,
    EvaluationReport,
    Finished,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Progress,
    Ready,
    Refusal,
    Rejected,
    RoundClosed,
    TensorHeader,
    UpdateAck,
    UpdateHeader,
    Welcome,
    Work,
)
from common.outbox import Outbox
from common.plan import Slice
from common.stream import AssetReceiver, MemorySink, StreamReceiver, chunk_frames
from common.wire import decode_frame, encode_frame

log = logging.getLogger("fedmtl.client")
MAX_FRAME_BYTES: Final = 64 << 20
OPEN_TIMEOUT_S: Final = 10.0
#: Refusals that coming back does not mend, and the exit they lead to.
FINAL_REFUSALS: Final = frozenset(
    {"authentication", "protocol_version", "plan_mismatch", "task_not_allowed", "encoding"}
)


@dataclass(frozen=True)
class Identity:
    """Who the client is and where it connects.

    Attributes:
        url: ``ws://HOST:PORT/ws`` (or wss).
        client_id: unique in the run.
        tasks: what it has data for; empty lets the server infer the task from the id.
        token: proof of identity, where the server asks for one.
        sync: ``slice``, or ``full`` for the whole unified model both ways.
        reconnect_s: how long to try to come back after the connection is lost.
    """

    url: str
    client_id: str
    tasks: tuple[str, ...] = ()
    token: str | None = None
    sync: Literal["slice", "full"] = "slice"
    reconnect_s: float = 120.0


@dataclass
class _Job:
    """Work in progress or done, and what came of it."""

    work: Work
    cancelled: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None
    evaluation: EvaluationReport | None = None
    update: TrainedUpdate | None = None
    declined: Declined | None = None
    acknowledged: bool = False

    @property
    def key(self) -> tuple[str, int, int, str]:
        return (self.work.run_id, self.work.round, self.work.version, self.work.plan)


class _Lost(Exception):
    """The connection is gone; the session goes on."""


class _Over(Exception):
    """The server ended the run."""

    def __init__(self, finished: Finished) -> None:
        super().__init__(finished.reason)
        self.finished = finished


class Session:
    """One client's part in one run.

    Args:
        identity: who and where.
        workload: data, model and training.
        display: shows progress to a person.
    """

    def __init__(self, identity: Identity, workload: Workload, display: Display) -> None:
        self._identity = identity
        self._workload = workload
        self._display = display
        self._assets: dict[str, bytes] = {}
        self._reports: Mapping[str, Any] = {}
        self._prepared: Welcome | None = None
        self._job: _Job | None = None
        self._stream = 0
        self._failure: BaseException | None = None
        # Of the current connection:
        self._outbox = Outbox()
        self._held: dict[str, tuple[TensorHeader, memoryview]] = {}
        self._incoming: tuple[Work, StreamReceiver, MemorySink] | None = None
        self._heard = 0.0
        #: Ready was said: messages about work may be sent.
        self._joined = False

    async def run(self) -> Finished:
        """Take part until the run is over.

        Raises:
            Refused: the server does not want this client.
            RunFailed: the run ended without reaching its target, or the server is gone for good.
            ConfigError, DataError: this client's data does not fit its tasks.
        """
        backoff = Backoff(self._identity.reconnect_s)
        try:
            while True:
                try:
                    await self._connect(backoff)
                except _Over as over:
                    if over.finished.state == "finished":
                        return over.finished
                    if over.finished.state != "stopped":
                        raise RunFailed(f"the run {over.finished.state}: {over.finished.reason}") from over
                    log.info("the server stopped (%s); waiting for it to come back", over.finished.reason)
                except (_Lost, OSError, websockets.WebSocketException, TimeoutError, ProtocolError) as error:
                    log.warning("no connection to %s: %s", self._identity.url, str(error) or type(error).__name__)
                await self._pause(backoff)
        finally:
            if self._job is not None:
                self._job.cancelled.set()
                if self._job.task is not None:
                    await asyncio.gather(self._job.task, return_exceptions=True)

    async def _pause(self, backoff: Backoff) -> None:
        delay = backoff.next(asyncio.get_running_loop().time())
        if delay is None:
            raise RunFailed(
                f"the server at {self._identity.url} could not be reached for {self._identity.reconnect_s:g} s "
                "(--reconnect-for sets how long to try)"
            )
        await asyncio.sleep(delay)

    # --- one connection

    async def _connect(self, backoff: Backoff) -> None:
        async with connect(
            self._identity.url,
            max_size=MAX_FRAME_BYTES,
            max_queue=4,
            compression=None,
            ping_interval=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=2,
            proxy=None,
        ) as socket:
            self._outbox, self._held, self._incoming, self._joined = Outbox(), {}, None, False
            self._heard = asyncio.get_running_loop().time()
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                welcome = await self._introduce(socket, returning=backoff.connected_before)
            backoff.reset()
            parts = [
                asyncio.create_task(part)
                for part in (self._take_part(socket, welcome), self._write(socket, welcome), self._watch(welcome))
            ]
            try:
                done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._joined = False
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
            if self._failure is not None:
                raise self._failure
            for part in done:
                part.result()
            raise _Lost("the connection was closed")

    async def _introduce(self, socket: ClientConnection, *, returning: bool) -> Welcome:
        me = self._identity
        hello = Hello(
            protocol=(PROTOCOL_VERSION,),
            client_id=me.client_id,
            tasks=me.tasks,
            token=me.token,
            sync=me.sync,
            assets=tuple(sorted(self._assets)),
            software="fedmtl",
        )
        await socket.send(encode_frame(hello))
        answer = await self._receive(socket)
        match answer:
            case Welcome():
                return answer
            case Refusal(code=code, reason=reason):
                raise _refusal(code, reason, returning=returning)
            case Finished():
                raise _Over(answer)
            case _:
                raise ProtocolError("out_of_order", f"{answer.type!r} came instead of a welcome")

    async def _receive(self, socket: ClientConnection) -> Message:
        frame = await socket.recv()
        self._heard = asyncio.get_running_loop().time()
        if isinstance(frame, str):
            raise ProtocolError("malformed", "a text frame came; the protocol speaks in binary frames")
        return decode_frame(frame)

    async def _take_part(self, socket: ClientConnection, welcome: Welcome) -> None:
        assets = {asset.name: await self._asset(socket, asset) for asset in welcome.assets}
        # Loading takes its time; messages that come meanwhile are heartbeats and are read by nobody else.
        preparing = asyncio.create_task(self._prepare(welcome, assets))
        reading: asyncio.Task[Message] | None = None
        try:
            while not preparing.done():
                reading = reading or asyncio.create_task(self._receive(socket))
                await asyncio.wait({preparing, reading}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    self._handle(reading.result())
                    reading = None
            preparing.result()
            self._outbox.put(Ready(tasks=dict(self._reports)))
            self._joined = True
            if self._job is not None and self._job.update is not None:
                self._send_update(self._job)
            while True:
                self._handle(await reading if reading is not None else await self._receive(socket))
                reading = None
                if self._failure is not None:
                    raise self._failure
        except FedmtlError as error:
            await socket.send(encode_frame(Goodbye(reason=str(error)[:2000])))
            raise
        finally:
            for pending in (preparing, reading):
                if pending is not None:
                    pending.cancel()
                    await asyncio.gather(pending, return_exceptions=True)

    async def _asset(self, socket: ClientConnection, asset: Asset) -> bytes:
        """One of the family's files: from an earlier connection, or off the wire."""
        if asset.sha256 not in self._assets:
            receiver = AssetReceiver(asset)
            while not receiver.complete:
                message = await self._receive(socket)
                if isinstance(message, Chunk):
                    receiver.accept(message)
                else:
                    self._handle(message)
            self._assets[asset.sha256] = receiver.content()
        return self._assets[asset.sha256]

    async def _prepare(self, welcome: Welcome, assets: Mapping[str, bytes]) -> None:
        """Load data and model once per run; coming back costs nothing."""
        known = self._prepared
        if known is not None and (known.run_id, known.specs, known.family) == (
            welcome.run_id,
            welcome.specs,
            welcome.family,
        ):
            return
        self._drop_job()
        self._reports = await asyncio.to_thread(self._workload.prepare, welcome, assets)
        self._prepared = welcome

    async def _write(self, socket: ClientConnection, welcome: Welcome) -> None:
        sequence = 0
        while True:
            try:
                frame = await self._outbox.next(welcome.heartbeat_s)
            except TimeoutError:
                frame = encode_frame(Heartbeat(sequence=sequence))
                sequence += 1
            if frame is None:
                return
            await socket.send(frame)

    async def _watch(self, welcome: Welcome) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = self._heard + welcome.silence_s - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(left)
        raise _Lost(f"the server has been silent for {welcome.silence_s:g} s")

    # --- messages

    def _handle(self, message: Message) -> None:
        match message:
            case Chunk():
                self._take_chunk(message)
            case Work():
                self._begin_receiving(message)
            case UpdateAck(update=digest):
                self._acknowledged(digest)
            case RoundClosed(round=round_id, reason=reason):
                self._round_closed(round_id, reason)
            case Rejected(code=code, reason=reason, round=round_id):
                log.warning("the server refused the update of round %s (%s): %s", round_id, code, reason)
                # A server that was restarted asks for the round again in a moment: the update is kept until then.
                if code != "future_round" and round_id is not None:
                    self._spend(round_id)
            case Refusal(code=code, reason=reason):
                raise _refusal(code, reason, returning=True)
            case Finished():
                raise _Over(message)
            case Heartbeat():
                pass
            case _:
                raise ProtocolError("out_of_order", f"{message.type!r} may not come from a server")

    def _begin_receiving(self, work: Work) -> None:
        for header in work.tensors:
            if header.held and (
                header.slot not in self._held or self._held[header.slot][0].checksum != header.checksum
            ):
                raise ProtocolError("out_of_order", f"slot {header.slot!r} is said to be held, but it is not")
        sink = MemorySink(work.tensors)
        self._incoming = (work, StreamReceiver(work.stream, work.tensors, sink), sink)
        self._begin_work_if_complete()

    def _take_chunk(self, chunk: Chunk) -> None:
        if self._incoming is None or chunk.stream != self._incoming[0].stream:
            return  # of a transfer that newer work has replaced
        work, receiver, sink = self._incoming
        for index in receiver.accept(chunk):
            header = work.tensors[index]
            self._held[header.slot] = (header, sink.payload(index))
        self._begin_work_if_complete()

    def _begin_work_if_complete(self) -> None:
        if self._incoming is None or not self._incoming[1].complete:
            return
        work, _, sink = self._incoming
        self._incoming = None
        for index, header in enumerate(work.tensors):
            if not header.nbytes:
                self._held[header.slot] = (header, sink.payload(index))
        received = {header.slot: self._held[header.slot] for header in work.tensors}
        # Slots of an earlier plan are of no more use.
        self._held = dict(received)
        self._begin_work(work, received)

    # --- work

    def _begin_work(self, work: Work, received: Received) -> None:
        job = _Job(work)
        if self._job is not None and self._answers(self._job, job):
            self._resume(self._job, work)
            return
        before = self._drop_job()
        self._job = job
        job.task = asyncio.create_task(self._do(job, received, before))

    @staticmethod
    def _answers(known: _Job, asked: _Job) -> bool:
        """Whether what is done, or under way, is what the server asks for.

        A cancelled job is one whose round was closed, or whose update was refused: another attempt begins anew.
        """
        same = known.key == asked.key and (known.work.training is None) == (asked.work.training is None)
        return same and not known.cancelled.is_set() and not known.acknowledged

    def _resume(self, job: _Job, work: Work) -> None:
        """The server asks again for what is under way or done: after a broken connection."""
        if work.evaluate and job.evaluation is not None:
            self._outbox.put(job.evaluation)
        if job.update is not None:
            self._send_update(job)
        if job.declined is not None:
            self._outbox.put(job.declined)

    def _drop_job(self) -> asyncio.Task[None] | None:
        job, self._job = self._job, None
        if job is None:
            return None
        job.cancelled.set()
        return job.task

    async def _do(self, job: _Job, received: Received, before: asyncio.Task[None] | None) -> None:
        """Evaluate, then train, as the work says; runs beside the connection and survives it."""
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        work, round_id = job.work, job.work.round
        try:
            slice_ = Slice.from_dict(work.slice)
            if work.evaluate:
                results = await asyncio.to_thread(self._workload.evaluate, work, slice_, received, job.cancelled)
                job.evaluation = EvaluationReport(round=round_id, version=work.version, tasks=dict(results))
                self._display.evaluated(work.version, results)
                self._say(job.evaluation)
            if work.training is not None:
                self._display.round_started(round_id, work.target_rounds)
                report = self._progress_reporter(round_id)
                update = await asyncio.to_thread(self._workload.train, work, slice_, received, report, job.cancelled)
                self._display.round_trained(round_id, update)
                if not job.cancelled.is_set():
                    job.update = update
                    self._send_update(job)
        except WorkCancelled:
            log.info("round %d: stopped, it is over", round_id)
        except WorkDeclined as error:
            log.warning("round %d: %s", round_id, error)
            job.declined = Declined(round=round_id, reason=str(error)[:2000])
            self._say(job.declined)
        except PlanError as error:
            self._fail(Refused("plan_mismatch", str(error)))
        except Exception as error:  # noqa: BLE001  # whatever went wrong here must end the client, not hang the round
            self._fail(error)

    def _say(self, message: Message) -> None:
        """Tell the server, if the client is part of the run now; what it has to know is kept and sent later else."""
        if self._joined:
            self._outbox.put(message)

    def _fail(self, error: BaseException) -> None:
        """End the session with an error of our own; the reader raises it."""
        self._failure = error
        self._outbox.put(Goodbye(reason=f"{type(error).__name__}: {error}"[:2000]))
        self._outbox.close()

    def _progress_reporter(self, round_id: int) -> Any:  # noqa: ANN401  # a callable for another thread
        loop = asyncio.get_running_loop()

        def show(done: int, total: int, loss: float) -> None:
            self._display.progress(done, total, loss)
            self._say(Progress(round=round_id, done_steps=done, total_steps=total, loss=loss))

        return lambda done, total, loss: loop.call_soon_threadsafe(show, done, total, loss)

    def _send_update(self, job: _Job) -> None:
        if not self._joined:
            return
        assert job.update is not None
        welcome = self._prepared
        assert welcome is not None
        self._stream += 1
        header = self._header(job, self._stream)
        self._outbox.put(header)
        frames = chunk_frames(self._stream, job.update.tensors, welcome.chunk_bytes)
        self._outbox.put_transfer(frames, replace=True)

    def _header(self, job: _Job, stream: int) -> UpdateHeader:
        assert job.update is not None
        return UpdateHeader(
            run_id=job.work.run_id,
            round=job.work.round,
            version=job.work.version,
            plan=job.work.plan,
            stream=stream,
            tasks=dict(job.update.tasks),
            tensors=tuple(tensor.header for tensor in job.update.tensors),
        )

    def _acknowledged(self, digest: str) -> None:
        job = self._job
        if job is not None and job.update is not None and self._header(job, 0).digest == digest:
            job.update, job.acknowledged = None, True
            self._outbox.drop_transfers()

    def _round_closed(self, round_id: int, reason: str) -> None:
        log.info("round %d is over: %s", round_id, reason)
        if self._spend(round_id):
            self._outbox.drop_transfers()

    def _spend(self, round_id: int) -> bool:
        """What is done or under way for a round is of no use; asked for that round again, the client starts anew."""
        if self._job is None or self._job.work.round != round_id:
            return False
        self._job.cancelled.set()
        self._job.update = None
        return True


def _refusal(code: str, reason: str, *, returning: bool) -> Exception:
    """What a refusal means: for good, a mistake in the command, or try again."""
    if code == "unknown_task":
        return ConfigError(reason)
    if code in FINAL_REFUSALS or (code == "duplicate_client" and not returning):
        return Refused(code, reason)
    return _Lost(f"the server refused the connection ({code}): {reason}")
