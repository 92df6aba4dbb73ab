"""One client's WebSocket: reads, writes and watches; every decision lies with the reception.

Three coroutines share the connection: the reader takes messages and spools updates, the writer empties
the outbox (and says that the server is alive when there is nothing to send), the watch ends a
connection that has fallen silent. What one client does or fails to do never blocks another: what its frames
take in memory, and how long it may leave one untaken, is bounded below (`server.web_socket`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from fastapi import WebSocket, WebSocketDisconnect

from common.errors import ProtocolError
from common.failpoints import failpoint
from common.messages import (
    Chunk,
    Declined,
    EvaluationReport,
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
    Work,
)
from common.outbox import Outbox, OutboxFull
from common.stream import StreamReceiver, asset_frames, tensor_frames
from common.tensors import EncodedTensor
from common.value_key import unpack_keys
from common.wire import CHUNK_OVERHEAD, decode_frame, encode_frame
from server.admission import RunIsOver
from server.authentication import Credentials
from server.gate import FAILURES, Visit
from server.holdings import Holdings
from server.link import Link
from server.spool import SpooledUpdate, SpoolWriter
from server.tls import peer_of

if TYPE_CHECKING:
    from server.reception import Reception

log = logging.getLogger("fedmtl.server")
CLOSE_OK: Final = 1000
CLOSE_POLICY: Final = 1008
#: Most list items and map entries in one message of a client (the largest evaluation has 17,000) ...
CLIENT_ENTRIES: Final = 32_768
#: ... and for each slot of the plan: a tensor header has 8 fields, each shape up to 8 dimensions.
SLOT_ENTRIES: Final = 32
#: What uvicorn reports where no close frame came.
LOST: Final = (1005, 1006)
#: Seconds for a client to take in that the run is over, and to close.
FAREWELL_S: Final = 2.0


@dataclass
class _Upload:
    """An update that is being received."""

    header: UpdateHeader
    receiver: StreamReceiver
    writer: SpoolWriter
    groups: list[str]


class Connection:
    """A client's connection, from hello to close.

    Attributes:
        client_id: who it is, once it has said hello.
        tasks: its tasks, once welcomed.
        full: it synchronises the whole model, not its slice.
        credentials: what its admission rests on.
        revoked: they count no longer: it is being closed, and gets no further work.
        bytes_down: bytes of frames sent.
        bytes_up: bytes of frames received.
        said_goodbye: it leaves for good.
        heard_the_end: it closed the connection in due form after the run was over.
    """

    def __init__(self, socket: WebSocket, reception: Reception) -> None:
        self.client_id = ""
        self.tasks: frozenset[str] = frozenset()
        self.full = False
        self.credentials = Credentials()
        self.revoked = False
        self.bytes_down = 0
        self.bytes_up = 0
        self.said_goodbye = False
        self.heard_the_end = False
        self._socket = socket
        self._reception = reception
        self._limits = reception.config.server.limits
        self._visit: Visit = socket.state.visit
        self._link = Link()
        self._outbox = Outbox()
        self._upload: _Upload | None = None
        self._holdings = Holdings()
        #: Slot, group and bytes of the payload in the frame that is being sent, where it has one.
        self._payload: tuple[str, str, int] | None = None
        self._stream = 0
        self._heard = 0.0
        self._occupied = False
        self._evaluations_left = self._limits.updates_per_round
        self._excess_announced = False

    @property
    def last_seen(self) -> float:
        """Seconds since the epoch of the last sign of life."""
        return time.time() - (asyncio.get_running_loop().time() - self._heard)

    @property
    def waiting(self) -> int:
        """Messages that have not left yet."""
        return self._outbox.waiting

    # --- what it may be asked for

    def send(self, message: Message) -> None:
        """Queue a short message; a peer that lets too many pile up loses its connection."""
        try:
            self._outbox.put(message)
        except OutboxFull as error:
            log.warning("closing the connection of %s: %s", self.client_id, error)
            self.close()

    def send_work(self, work: Work, tensors: Sequence[EncodedTensor]) -> None:
        """Send a round's work and the tensors that the client does not have.

        Work that was still being sent is dropped: its round is over.
        """
        self._stream += 1
        self._evaluations_left = self._limits.updates_per_round
        self._excess_announced = False
        outgoing = self._holdings.outgoing(tensors)
        headers = tuple(tensor.header for tensor in outgoing)
        announced = work.model_copy(update={"stream": self._stream, "tensors": headers})
        frames = self._work_frames(announced, outgoing, self._groups_of(headers))
        self._outbox.put_transfer(frames, replace=True)

    def _work_frames(self, work: Work, tensors: Sequence[EncodedTensor], groups: Sequence[str]) -> Iterator[bytes]:
        yield encode_frame(work)
        for index, (tensor, group) in enumerate(zip(tensors, groups, strict=True)):
            slot = tensor.header.slot
            self._reception.ledger.slots.sent(slot, group, 0)
            for frame in tensor_frames(work.stream, index, tensor, self._limits.chunk_bytes):
                self._payload = (slot, group, len(frame) - CHUNK_OVERHEAD)
                yield frame
        self._holdings.delivered(tensors)

    def _groups_of(self, headers: Sequence[TensorHeader]) -> list[str]:
        """The group of each tensor's parameter, under the plan that holds now."""
        plan = self._reception.model.plan
        return [plan.by_id[header.slot].spec.group for header in headers]

    def dismiss(self, message: RoundClosed) -> None:
        """Tell the client that a round is over without it; what was still on its way is dropped."""
        self._outbox.drop_transfers()
        self.send(message)

    def close(self) -> None:
        """End the connection when what is queued has been sent."""
        self._outbox.drop_transfers()
        self._outbox.close()

    # --- life of the connection

    async def serve(self) -> None:
        """Run the connection to its end; never raises on account of the peer."""
        try:
            await self._socket.accept()
            self._heard = asyncio.get_running_loop().time()
            async with asyncio.timeout_at(self._visit.deadline):
                await self._handshake()
            if not self.said_goodbye:
                await self._run()
        except (ProtocolError, TimeoutError) as error:
            await self._refuse(error)
        except (WebSocketDisconnect, ConnectionError, RuntimeError) as error:
            log.debug("connection of %s ended: %r", self.client_id or "an unknown peer", error)
        except Exception:
            # A mistake of ours ends this one connection by name, and no other.
            log.exception("an error on the connection of %s", self._peer)
            await self._refuse(ProtocolError("internal", "an error of the server; its log says more"))
        finally:
            if self._visit.cut_off:
                log.warning("closed the connection of %s: %s", self._peer, self._visit.cut_off)
            if self._upload is not None:
                self._visit.gate.announcements.forgive(self.client_id)
            self._abandon_upload()
            self._reception.disconnected(self)

    @property
    def _peer(self) -> str:
        """Who it is, for the log."""
        return self.client_id or f"an unknown peer at {self._visit.address}"

    async def _handshake(self) -> None:
        message = await self._receive()
        self._link.take(message)
        if isinstance(message, Hello):
            try:
                welcome, assets = self._reception.welcome(self, message, peer_of(self._socket))
            except RunIsOver as over:
                await self._transmit(encode_frame(over.message))
                await self._socket.close(CLOSE_OK)
                self.said_goodbye = True
                return
            self._visit.admitted()
            self._outbox.put(welcome)
            for asset in welcome.assets:
                if asset.sha256 not in message.assets:
                    content = assets[asset.name]
                    self._outbox.put_transfer(asset_frames(asset.stream, content, self._limits.chunk_bytes))
            self._stream = len(welcome.assets)
        else:
            self.said_goodbye = True

    async def _run(self) -> None:
        parts = [asyncio.create_task(part) for part in (self._read(), self._write(), self._watch())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        for part in done:
            part.result()

    async def _refuse(self, error: ProtocolError | TimeoutError) -> None:
        if isinstance(error, TimeoutError):
            error = ProtocolError("timeout", "no hello came in time")
        code, reason = error.code, error.reason
        log.warning("refused %s: %s: %s", self._peer, code, reason, extra={"code": code})
        self._reception.count_refusal(self, code, reason)
        if code in FAILURES:
            self._visit.failed()
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                await self._transmit(encode_frame(Refusal(code=code, reason=reason[:2000])))
                await self._socket.close(CLOSE_POLICY)
        except (TimeoutError, WebSocketDisconnect, ConnectionError, RuntimeError) as gone:
            log.debug("the refused peer is gone: %r", gone)

    async def _write(self) -> None:
        sequence = 0
        while True:
            try:
                frame = await self._outbox.next(self._limits.heartbeat_s)
            except TimeoutError:
                frame = encode_frame(Heartbeat(sequence=sequence))
                sequence += 1
            if frame is None:
                if self._reception.over:
                    # The client closes when it has heard that the run is over. Were we the first, we would not know.
                    await asyncio.sleep(FAREWELL_S)
                await self._socket.close(CLOSE_OK)
                return
            payload, self._payload = self._payload, None
            await self._transmit(frame)
            if payload is not None:
                self._reception.ledger.slots.sent(*payload)

    async def _transmit(self, frame: bytes) -> None:
        await self._socket.send_bytes(frame)
        self.bytes_down += len(frame)
        self._reception.ledger.traffic.down += len(frame)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        # While a frame of its is being written to disk, or waits for others' frames to be, nothing is read, so silence
        # proves nothing; nor does it after this process was suspended, before what came meanwhile is read.
        given_up_at = float("-inf")
        while True:
            if self._visit.waits_for_room:
                self._heard = loop.time()
            left = self._heard + self._limits.silence_s - loop.time()
            if left <= 0 and not self._occupied:
                if given_up_at == self._heard:
                    break
                given_up_at = self._heard
                left = self._limits.silence_s / 8
            await asyncio.sleep(left if left > 0 else self._limits.heartbeat_s)
        log.warning("%s has been silent for %.1f s: it counts as dead", self.client_id, self._limits.silence_s)

    async def _receive(self) -> Message:
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            code = event.get("code", 1006)
            self.heard_the_end = self._reception.over and code not in LOST
            raise WebSocketDisconnect(code)
        self._heard = asyncio.get_running_loop().time()
        frame = event.get("bytes")
        if frame is None:
            raise ProtocolError("malformed", "a text frame; the protocol speaks in binary frames")
        self.bytes_up += len(frame)
        self._reception.ledger.traffic.up += len(frame)
        most = CLIENT_ENTRIES + SLOT_ENTRIES * len(self._reception.model.plan.slots)
        return decode_frame(frame, self._limits.control_bytes, most)

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            self._link.take(message)
            self._occupied = True
            try:
                await self._handle(message)
            finally:
                self._occupied = False
                self._heard = asyncio.get_running_loop().time()
            if self.said_goodbye:
                return

    async def _handle(self, message: Message) -> None:
        match message:
            case Chunk():
                await self._take_chunk(message)
            case UpdateHeader():
                await self._begin_upload(message)
            case Ready():
                self._holdings.listed(unpack_keys(message.held))
                self._reception.joined(self, message)
            case EvaluationReport():
                self._count_evaluation()
                self._reception.evaluated(self, message)
            case Declined():
                self._reception.declined(self, message.round, message.reason)
            case Progress():
                self._reception.progressed(self, message)
            case Goodbye():
                self.said_goodbye = True
            case _:
                pass

    def _count_evaluation(self) -> None:
        """Each report is written down, so there is a bound on how many may answer one work."""
        if not self._evaluations_left:
            raise ProtocolError("out_of_order", f"more than {self._limits.updates_per_round} evaluations for one work")
        self._evaluations_left -= 1

    # --- updates

    async def _begin_upload(self, header: UpdateHeader) -> None:
        self._abandon_upload()
        if not self._visit.gate.announcements.take(self.client_id, self._reception.decisions.version + 1):
            self._refuse_excess(header)
            return
        try:
            verdict = self._reception.admit(self, header)
            if verdict != "wanted":
                self._answer_again(header, verdict)
                return
            groups = self._groups_of(header.tensors)
            directory = self._reception.directory
            writer = await asyncio.to_thread(SpoolWriter, directory.spool, header, self.client_id, directory.disk)
            try:
                receiver = StreamReceiver(header.stream, header.tensors, writer)
            except ProtocolError:
                writer.abandon()
                raise
            self._upload = _Upload(header, receiver, writer, groups)
            failpoint("upload.announced")
            await self._commit_if_complete()
        except (ProtocolError, OSError) as error:
            self._reject(header, error)

    def _refuse_excess(self, header: UpdateHeader) -> None:
        """Refuse to look at an update of a client that has announced too many; said in the log once per work."""
        reason = f"{self.client_id} has announced {self._limits.updates_per_round} updates in this round already"
        if not self._excess_announced:
            self._excess_announced = True
            log.warning("refused an update of %s for round %d: %s", self.client_id, header.round, reason)
        self._reception.count_refusal(self, "too_many_updates")
        self.send(Rejected(code="too_many_updates", reason=reason, round=header.round))
        self._reception.declined(self, header.round, reason)

    async def _take_chunk(self, chunk: Chunk) -> None:
        upload = self._upload
        if upload is None or chunk.stream != upload.header.stream:
            return  # of an update that was refused or is known: its frames may still be on their way
        try:
            await asyncio.to_thread(upload.receiver.accept, chunk)
            slot, group = upload.header.tensors[chunk.tensor].slot, upload.groups[chunk.tensor]
            self._reception.ledger.slots.received(slot, group, memoryview(chunk.data).nbytes)
            failpoint("upload.receiving")
            await self._commit_if_complete()
        except (ProtocolError, OSError) as error:
            self._reject(upload.header, error)

    async def _commit_if_complete(self) -> None:
        upload = self._upload
        if upload is not None and upload.receiver.complete:
            # The round may have closed while the chunks came.
            verdict = self._reception.admit(self, upload.header)
            if verdict != "wanted":
                self._abandon_upload()
                self._answer_again(upload.header, verdict)
                return
            self._upload = None
            spool_round = self._reception.decisions.spool_round
            committing = asyncio.ensure_future(asyncio.to_thread(upload.writer.commit, spool_round))
            try:
                await asyncio.shield(committing)
            finally:
                # Also when the connection ends just now: the file gets its name, so it is an update that has come.
                if not committing.cancelled():
                    update: SpooledUpdate = await committing
                    self._reception.update_spooled(self, update)

    def _answer_again(self, header: UpdateHeader, verdict: Literal["duplicate", "undecided"]) -> None:
        if verdict == "duplicate":
            self.send(UpdateAck(round=header.round, version=header.version, update=header.digest, duplicate=True))

    def _reject(self, header: UpdateHeader, error: ProtocolError | OSError) -> None:
        """Refuse an update; the connection lives on, and so does the round."""
        self._abandon_upload()
        if isinstance(error, OSError):
            reason = f"the server could not store the update: {error.strerror}"
            log.warning("%s: %s", self.client_id, reason)
            self.send(Rejected(code="internal", reason=reason[:2000], round=header.round))
            self._visit.gate.announcements.forgive(self.client_id)
            self._reception.not_stored(self, header, error)
            return
        context = {"code": error.code, "round": header.round}
        log.warning("refused an update of %s for round %d: %s", self.client_id, header.round, error, extra=context)
        self._reception.count_refusal(self, error.code, error.reason)
        self.send(Rejected(code=error.code, reason=error.reason[:2000], round=header.round))
        if error.code not in ("stale_round", "stale_version", "not_asked", "future_round"):
            self._reception.refused(self, header.round, error)

    def _abandon_upload(self) -> None:
        if self._upload is not None:
            self._upload.writer.abandon()
            self._upload = None
