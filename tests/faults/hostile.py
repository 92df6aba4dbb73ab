"""What hostile peers do, each to its end: below the protocol on bare sockets, and as clients that lie.

Each coroutine returns in one word how the server ended it, so that a test can list what is expected.
"""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgpack
import websockets
import xxhash

from client.workload import TrainedUpdate
from common.messages import (
    PROTOCOL_VERSION,
    Chunk,
    DataReport,
    EvaluationReport,
    Finished,
    Heartbeat,
    Hello,
    Message,
    Ready,
    Refusal,
    Rejected,
    RoundClosed,
    TaskContribution,
    UpdateHeader,
    Work,
)
from common.wire import encode_frame
from tests.e2e.peers import Peer, evaluation, peer, work_done
from tests.e2e.programs import Server

PATIENCE_S: Final = 60.0
UPGRADE: Final = (
    b"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n"
)


def allow_files(number: int) -> None:
    """Let this process open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, hard), hard))


def descriptors(process: int) -> int:
    """Open files and sockets of a process."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def resident_mib(process: int) -> float:
    """Memory of a process that is in RAM."""
    words = Path(f"/proc/{process}/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def frame(payload: bytes, opcode: int = 2, *, length: int | None = None) -> bytes:
    """A WebSocket frame as a client sends it, masked with zeros; `length` is what its header says."""
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes([128 | opcode, 128 | size])
    elif size < 1 << 16:
        head = bytes([128 | opcode, 128 | 126]) + struct.pack("!H", size)
    else:
        head = bytes([128 | opcode, 128 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


def sealed(content: object) -> bytes:
    """Any msgpack with its right checksum."""
    body = bytes(msgpack.packb(content))
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


# --- bare sockets


class Bare:
    """A TCP connection to the server."""

    def __init__(self, server: Server, *, receive_bytes: int | None = None) -> None:
        host, _, port = server.url.removeprefix("http://").partition(":")
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.setblocking(False)
        self._where = (host, int(port))

    async def open(self, *, upgraded: bool = False) -> Bare:
        """Connect, and upgrade to WebSocket."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, self._where)
        if upgraded:
            await self.send(UPGRADE)
            said = b""
            while b"\r\n\r\n" not in said:
                piece = await loop.sock_recv(self.socket, 65536)
                if not piece:
                    raise ConnectionResetError("closed before the upgrade")
                said += piece
        return self

    async def send(self, data: bytes) -> None:
        """Send all of it; raises `OSError` when the server has closed."""
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def ended(self) -> str:
        """Read until the server closes."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await asyncio.get_running_loop().sock_recv(self.socket, 65536):
                    pass
        except ConnectionError:
            pass
        finally:
            self.socket.close()
        return "closed"


async def drip(server: Server, data: bytes, *, upgraded: bool) -> str:
    """A byte a second, of a request or of a frame."""
    bare = await Bare(server).open(upgraded=upgraded)

    async def send() -> None:
        for byte in data:
            await bare.send(bytes([byte]))
            await asyncio.sleep(1.0)

    sending = asyncio.create_task(send())
    try:
        return await bare.ended()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def declare(server: Server, length: int) -> str:
    """A frame whose header announces far more than anybody may send."""
    bare = await Bare(server).open(upgraded=True)
    await bare.send(frame(b"x" * 1000, length=length))
    return await bare.ended()


async def flood_with_pings(server: Server) -> str:
    """Pings without end, and not one answer read."""
    bare = await Bare(server).open(upgraded=True)
    flood = frame(b"p" * 125, 9) * 1000
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await bare.send(flood)
    except ConnectionError:
        return "closed"
    finally:
        bare.socket.close()


async def say_nothing(server: Server, number: int) -> list[Bare]:
    """So many connections."""
    return list(await asyncio.gather(*(Bare(server).open() for _ in range(number))))


async def read_a_byte_a_second(server: Server, client_id: str, joined: Callable[[], None]) -> str:
    """A client that is asked to train and takes its model so slowly that it would have it in months."""
    bare = await Bare(server, receive_bytes=4096).open(upgraded=True)
    loop = asyncio.get_running_loop()
    try:
        await bare.send(frame(encode_frame(Hello(protocol=(PROTOCOL_VERSION,), client_id=client_id))))
        report = DataReport(train=10, validation=4, source="made up")
        await bare.send(frame(encode_frame(Ready(tasks={"qqp": report}))))
        joined()
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE_S:
            await bare.send(frame(encode_frame(Heartbeat(sequence=0))))
            if not await loop.sock_recv(bare.socket, 1):
                return "closed"
            await asyncio.sleep(1.0)
    except ConnectionError:
        return "closed"
    finally:
        bare.socket.close()
    return "still open"


# --- clients that lie

Lie = Callable[[Peer, Work, TrainedUpdate], Awaitable[str]]


async def lies(server: Server, client_id: str, lie: Lie, joined: Callable[[], None]) -> str:
    """Join, wait for work, and do what `lie` does."""
    async with peer(server.address) as liar:
        await liar.join(client_id)
        joined()
        work = await liar.take_work(skip=(Chunk, RoundClosed))
        return await lie(liar, work, work_done(work, ["qqp"], client_id))


async def answer(liar: Peer) -> str:
    """The name under which the server refuses what was sent."""
    try:
        while True:
            message: Message = await liar.receive()
            if isinstance(message, Refusal | Rejected):
                return message.code
            assert not isinstance(message, Finished)
    except websockets.ConnectionClosed as closed:
        return str(closed.rcvd.code) if closed.rcvd else "closed"


async def announce_and_never_send(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """Only the header, then heartbeats for a while."""
    await liar.send(header_of(work, update))
    await asyncio.sleep(2.0)
    return "waited for"


async def announce_too_often(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """Announcements of updates that are refused, more than anybody needs."""
    codes = []
    for _ in range(9):
        await liar.send(header_of(work, update, version=7))
        codes.append(await answer(liar))
    assert "too_many_updates" not in codes[:8]
    return codes[8]


async def replay(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """An update of the round before."""
    await liar.send_update(update, round=work.round - 1, version=work.version - 1)
    return await answer(liar)


async def train_for_others(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """An update for a task that is not its own."""
    del work
    (done,) = update.tasks.values()
    await liar.send_update(TrainedUpdate({"sst2": done}, update.tensors))
    return await answer(liar)


async def declare_a_giant_tensor(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """A tensor of 2^52 bytes in place of a slot's, consistent in itself."""
    first = update.tensors[0].header
    giant = first.model_copy(update={"shape": (2**50,), "nbytes": 2**52, "encoding": "raw", "rows": None})
    await liar.send(header_of(work, update, tensors=(giant,)))
    return await answer(liar)


async def overfill(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """A chunk that is longer than its tensor."""
    await liar.send(header_of(work, update))
    await liar.send(Chunk(stream=99, tensor=0, offset=0, data=bytes(update.tensors[0].header.nbytes + 8)))
    return await answer(liar)


async def send_chunks_out_of_order(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """The second chunk first."""
    await liar.send(header_of(work, update))
    await liar.send(Chunk(stream=99, tensor=1, offset=0, data=bytes(8)))
    return await answer(liar)


async def speak_out_of_turn(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """A message that only a server sends."""
    del update
    await liar.send(work)
    return await answer(liar)


async def send_garbage(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """Random bytes."""
    del work, update
    await liar.socket.send(secrets.token_bytes(100_000))
    return await answer(liar)


async def send_a_bomb(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """A megabyte of empty lists: 64 times as much once it is unpacked."""
    del work, update
    await liar.socket.send(sealed({"type": "progress", "bomb": [[[]] * 65_000] * 16}))
    return await answer(liar)


async def report_without_end(liar: Peer, work: Work, update: TrainedUpdate) -> str:
    """Evaluations, each of which is written down."""
    del update
    assert liar.welcome is not None
    report = EvaluationReport(
        round=work.round, version=work.version, tasks={"qqp": evaluation(liar.welcome, "qqp", 0.0)}
    )
    for _ in range(100):
        await liar.send(report)
    return await answer(liar)


def header_of(work: Work, update: TrainedUpdate, **changes: Any) -> UpdateHeader:  # noqa: ANN401  # any field
    """The announcement of an update on stream 99."""
    done = TaskContribution(num_examples=10, num_steps=1, loss=0.5, seconds=0.0)
    fields: dict[str, Any] = {
        "run_id": work.run_id,
        "round": work.round,
        "version": work.version,
        "plan": work.plan,
        "stream": 99,
        "tasks": {"qqp": done},
        "tensors": tuple(tensor.header for tensor in update.tensors),
    }
    return UpdateHeader(**fields | changes)


async def knock(server: Server) -> str:
    """Send garbage instead of a hello; returns the refusal, or the status of an upgrade that was refused."""
    try:
        async with peer(server.address, alive=False) as stranger:
            await stranger.socket.send(b"let me in")
            return await answer(stranger)
    except websockets.InvalidStatus as refused:
        return str(refused.response.status_code)
