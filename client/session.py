"""The client's side of the federation protocol: connect, introduce, take work, send what came of it, come back.

A session outlives its connections: loading and training go on while the network is away, and a finished
update is kept, in memory and on disk, until the server has acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import websockets
from websockets.asyncio.client import ClientConnection, connect

from client.backoff import Backoff
from client.display import Display
from client.frozen_disk import FrozenDisk
from client.frozen_values import FrozenValues
from client.incoming import IncomingWork
from client.kept_update import KeptUpdates, circumstances
from client.preparation import Preparation
from client.refusal import refusal, why_no_connection
from client.tls import trust_failure
from client.worker import Worker
from client.workload import Received, Workload
from common.errors import ProtocolError, RunFailed
from common.failpoints import failpoint
from common.log_context import bind_log_context, with_log_context
from common.messages import (
    PROTOCOL_VERSION,
    Asset,
    Chunk,
    DataReport,
    Finished,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Ready,
    Refusal,
    Rejected,
    RoundClosed,
    UpdateAck,
    Welcome,
    Work,
)
from common.outbox import Outbox
from common.stream import AssetReceiver
from common.wire import decode_frame, encode_frame

log = logging.getLogger("fedmtl.client")
MAX_FRAME_BYTES: Final = 64 << 20
OPEN_TIMEOUT_S: Final = 10.0
#: How long a connection that is closing may take to say its last words, and we ours.
LAST_WORDS_S: Final = 2.0
#: A peer that seems silent gets so long for what waits in the socket to be read; at most a quarter of its silence.
READ_CHANCE_S: Final = 1.0


@dataclass(frozen=True)
class Identity:
    """Who the client is and where it connects.

    Attributes:
        url: ``ws://HOST:PORT/ws`` (or wss).
        client_id: unique in the run.
        tasks: what it has data for; empty lets the server infer the task from the id.
        token: proof of identity, where the server asks for one.
        sync: ``slice``, or ``full`` for the whole unified model both ways.
        reconnect_s: how long to try to come back after the connection is lost; 0: not at all.
        twin_patience_s: how long another client of this name is taken for a dead connection of our own: of a process
            that was killed a moment ago, which the server has not noticed yet.
        tls: how to verify the server and prove who we are over wss; None trusts what the system trusts.
    """

    url: str
    client_id: str
    tasks: tuple[str, ...] = ()
    token: str | None = None
    sync: Literal["slice", "full"] = "slice"
    reconnect_s: float = 600.0
    twin_patience_s: float = 10.0
    tls: ssl.SSLContext | None = None


class _Lost(Exception):
    """The connection is gone; the session goes on."""


class _Failed(Exception):
    """An error of our own ends the session."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


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
        kept: finished updates on disk; None keeps them in memory only.
        frozen: values of frozen slots on disk; None has them sent on every connection.
    """

    def __init__(
        self,
        identity: Identity,
        workload: Workload,
        display: Display,
        kept: KeptUpdates | None = None,
        frozen: FrozenValues | None = None,
    ) -> None:
        self._identity = identity
        self._workload = workload
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedmtl-work")
        self._worker = Worker(workload, display, self._thread, self._fail, kept)
        self._frozen = FrozenDisk(frozen)
        self._assets: dict[str, bytes] = {}
        self._preparation: Preparation | None = None
        self._welcomed_before = False
        self._twin_since: float | None = None
        self._failure: Exception | None = None
        self._failing = asyncio.Event()
        # Of the current connection:
        self._welcome: Welcome | None = None
        self._worked = False
        self._incoming = IncomingWork()
        self._heard = 0.0

    async def run(self) -> Finished:
        """Take part until the run is over.

        Raises:
            Refused: the server does not want this client, or its certificate can't be verified.
            RunFailed: the run ended without reaching its target, or the server is gone for good.
            ConfigError, DataError: this client's data does not fit its tasks.
        """
        bind_log_context(client_id=self._identity.client_id)
        backoff = Backoff(self._identity.reconnect_s)
        try:
            while True:
                self._welcome, self._worked = None, False
                try:
                    await self._connect()
                except _Over as over:
                    if over.finished.state == "finished":
                        if self._welcome is not None:
                            self._worker.run_over(self._welcome.run_id)
                            self._frozen.forget_run(self._welcome.run_id)
                        return over.finished
                    if over.finished.state != "stopped":
                        raise RunFailed(f"the run {over.finished.state}: {over.finished.reason}") from over
                    log.info("the server stopped (%s); waiting for it to come back", over.finished.reason)
                    backoff.reset()
                except ProtocolError as error:
                    log.warning("no use of the connection to %s: %s", self._identity.url, error)
                    # What goes wrong each time must come to an end, so a mere welcome is not enough here.
                    if self._worked:
                        backoff.reset()
                except (_Lost, OSError, websockets.WebSocketException, TimeoutError) as error:
                    if (untrusted := trust_failure(self._identity.url, error)) is not None:
                        raise untrusted from error
                    log.warning(
                        "no connection to %s: %s", self._identity.url, why_no_connection(self._identity.url, error)
                    )
                    if self._welcome is not None:
                        backoff.reset()
                await self._pause(backoff)
        except _Failed as failed:
            raise failed.error from failed
        finally:
            await self._wind_up()

    async def _pause(self, backoff: Backoff) -> None:
        delay = backoff.next(asyncio.get_running_loop().time())
        if delay is None:
            raise RunFailed(
                f"the server at {self._identity.url} could not be reached for {self._identity.reconnect_s:g} s "
                "(--reconnect-for sets how long to try)"
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._raise_failure()

    async def _wind_up(self) -> None:
        """End what goes on in threads."""
        if self._preparation is not None:
            self._preparation.task.cancel()
            await asyncio.gather(self._preparation.task, return_exceptions=True)
        running = self._worker.drop()
        if running is not None:
            await asyncio.gather(running, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._worker.close)
        await asyncio.to_thread(self._frozen.close)

    # --- one connection

    async def _connect(self) -> None:
        tls: dict[str, Any] = {} if self._identity.tls is None else {"ssl": self._identity.tls}
        async with connect(
            self._identity.url,
            max_size=MAX_FRAME_BYTES,
            max_queue=4,
            compression=None,
            ping_interval=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=LAST_WORDS_S,
            proxy=None,
            **tls,
        ) as socket:
            self._incoming = IncomingWork()
            self._heard = asyncio.get_running_loop().time()
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                welcome = await self._introduce(socket)
            self._welcome, self._welcomed_before = welcome, True
            bind_log_context(run_id=welcome.run_id)
            failpoint("client.welcomed")
            try:
                await self._stay(socket, welcome)
            except asyncio.CancelledError:
                await _say_goodbye(socket, "stopped")
                raise
            except _Failed as failed:
                await _say_goodbye(socket, f"{type(failed.error).__name__}: {failed}")
                raise
            finally:
                self._worker.detach()

    async def _stay(self, socket: ClientConnection, welcome: Welcome) -> None:
        """Read, write and watch until one of them ends; always raises what ended the connection."""
        outbox = Outbox()
        reader = asyncio.create_task(self._take_part(socket, welcome, outbox))
        others = [
            asyncio.create_task(part)
            for part in (self._raise_failure(), self._write(socket, welcome, outbox), self._watch(welcome))
        ]
        try:
            await asyncio.wait([reader, *others], return_when=asyncio.FIRST_COMPLETED)
            if others[1].done() and not reader.done():
                # What the server said before it closed still counts: that the run is over, most likely.
                await asyncio.wait([reader], timeout=LAST_WORDS_S)
        finally:
            for part in (reader, *others):
                part.cancel()
            await asyncio.gather(reader, *others, return_exceptions=True)
        for part in (reader, *others):
            if not part.cancelled():
                part.result()
        raise _Lost("the connection was closed")

    async def _introduce(self, socket: ClientConnection) -> Welcome:
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
                returning = self._welcomed_before or (code == "duplicate_client" and self._may_be_our_own())
                raise refusal(code, reason, returning=returning)
            case Finished():
                raise _Over(answer)
            case _:
                raise ProtocolError("out_of_order", f"{answer.type!r} came instead of a welcome")

    def _may_be_our_own(self) -> bool:
        """Whether a client of our name that is in our place may still be a dead connection of our own."""
        now = asyncio.get_running_loop().time()
        self._twin_since = self._twin_since if self._twin_since is not None else now
        return now - self._twin_since < self._identity.twin_patience_s

    async def _receive(self, socket: ClientConnection) -> Message:
        frame = await socket.recv()
        self._heard = asyncio.get_running_loop().time()
        if isinstance(frame, str):
            raise ProtocolError("malformed", "a text frame came; the protocol speaks in binary frames")
        return decode_frame(frame)

    async def _take_part(self, socket: ClientConnection, welcome: Welcome, outbox: Outbox) -> None:
        assets = {asset.name: await self._asset(socket, asset) for asset in welcome.assets}
        preparing = self._prepare(welcome, assets)
        reading: asyncio.Task[Message] | None = None
        try:
            # Loading takes its time; messages that come meanwhile are heartbeats and are read by nobody else.
            while not preparing.done():
                reading = reading or asyncio.create_task(self._receive(socket))
                await asyncio.wait({preparing, reading}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    self._handle(reading.result())
                    reading = None
            loaded = preparing.result()
            held = await self._frozen.listed(welcome.run_id)
            if held:
                # The frame after the hello may not be long, see docs/protocol.md.
                outbox.put(Heartbeat(sequence=0))
            outbox.put(Ready(tasks=dict(loaded), held=held))
            self._worker.attach(outbox, welcome.chunk_bytes, circumstances(welcome, loaded, self._identity.sync))
            while True:
                message = await reading if reading is not None else await self._receive(socket)
                reading = None
                if isinstance(message, Work):
                    await self._frozen.supply(self._incoming, message)
                self._handle(message)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

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

    def _prepare(self, welcome: Welcome, assets: Mapping[str, bytes]) -> asyncio.Task[Mapping[str, DataReport]]:
        """Load data and model, once per run; goes on when the connection breaks."""
        known = self._preparation
        if known is None or not known.serves(welcome):
            # One at a time: a thread can't be stopped, and the workload is one.
            before = (known.task if known is not None else None, self._worker.drop())
            self._preparation = known = Preparation(welcome, asyncio.create_task(self._load(welcome, assets, before)))
        return known.task

    async def _load(
        self, welcome: Welcome, assets: Mapping[str, bytes], before: Iterable[asyncio.Task[Any] | None]
    ) -> Mapping[str, DataReport]:
        await asyncio.gather(*(task for task in before if task is not None), return_exceptions=True)
        try:
            loop = asyncio.get_running_loop()
            prepare = with_log_context(self._workload.prepare)
            loaded = await loop.run_in_executor(self._thread, prepare, welcome, assets)
        except Exception as error:
            self._fail(error)
            raise _Failed(error) from error
        failpoint("client.prepared")
        return loaded

    async def _write(self, socket: ClientConnection, welcome: Welcome, outbox: Outbox) -> None:
        sequence = 0
        while True:
            try:
                frame = await outbox.next(welcome.heartbeat_s)
            except TimeoutError:
                frame = encode_frame(Heartbeat(sequence=sequence))
                sequence += 1
            if frame is None:
                return
            await socket.send(frame)

    async def _watch(self, welcome: Welcome) -> None:
        """End the connection when nothing comes for too long.

        A process that was suspended wakes with its clock far ahead and what came meanwhile unread, so silence counts
        only when nothing is read even after a moment.
        """
        loop = asyncio.get_running_loop()
        judged = -1.0
        while judged != self._heard:
            left = self._heard + welcome.silence_s - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                judged = self._heard
                await asyncio.sleep(min(READ_CHANCE_S, welcome.silence_s / 4))
        raise _Lost(f"the server has been silent for {welcome.silence_s:g} s")

    # --- messages

    def _handle(self, message: Message) -> None:
        arrived: tuple[Work, Received] | None = None
        match message:
            case Chunk():
                arrived = self._incoming.accept(message)
            case Work():
                arrived = self._incoming.announce(message)
            case UpdateAck(update=digest):
                self._worker.acknowledged(digest)
            case RoundClosed(round=round_id, reason=reason):
                self._worker.round_closed(round_id, reason)
            case Rejected(code=code, reason=reason, round=round_id):
                self._worker.rejected(code, reason, round_id)
            case Refusal(code=code, reason=reason):
                raise refusal(code, reason, returning=True)
            case Finished():
                raise _Over(message)
            case Heartbeat():
                pass
            case _:
                raise ProtocolError("out_of_order", f"{message.type!r} may not come from a server")
        if arrived is not None:
            self._worked = True
            failpoint("client.work_received")
            self._worker.begin(*arrived)
            self._frozen.keep(*arrived)

    def _fail(self, error: Exception) -> None:
        """End the session with an error of our own."""
        self._failure = self._failure or error
        self._failing.set()

    async def _raise_failure(self) -> None:
        """Wait for an error of our own, and raise it."""
        await self._failing.wait()
        assert self._failure is not None
        raise _Failed(self._failure)


async def _say_goodbye(socket: ClientConnection, reason: str) -> None:
    """Tell the server not to wait for this client; it may be gone itself."""
    with contextlib.suppress(OSError, TimeoutError, websockets.WebSocketException):
        async with asyncio.timeout(LAST_WORDS_S):
            await socket.send(encode_frame(Goodbye(reason=reason[:2000])))
