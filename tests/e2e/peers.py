"""Clients inside the test's own process, over real sockets: a session with made-up work, and the bare protocol."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from client.display import Display
from client.session import Identity, Session
from client.workload import Progress, Received, TrainedUpdate
from common.messages import (
    PROTOCOL_VERSION,
    Chunk,
    DataReport,
    Finished,
    Heartbeat,
    Hello,
    Message,
    Ready,
    TaskContribution,
    TaskEvaluation,
    UpdateHeader,
    Welcome,
    Work,
)
from common.plan import Slice, Slot
from common.seeds import derive_seed
from common.stream import MemorySink, StreamReceiver, chunk_frames
from common.tensors import NUMPY_DTYPES, Array, EncodedTensor, decode_tensor, encode_tensor
from common.wire import decode_frame, encode_frame
from tests.e2e.programs import Server

PATIENCE_S = 60.0
Kind = TypeVar("Kind", bound=Message)


def small_delta(slot: Slot, client_id: str, round_id: int) -> Array:
    """A delta that follows from client, round and slot alone."""
    numbers = np.random.default_rng(derive_seed(0, client_id, round_id, slot.id))
    return numbers.normal(0.0, 1e-3, slot.shape).astype(NUMPY_DTYPES[slot.dtype])


def work_done(work: Work, tasks: Sequence[str], client_id: str, examples: int = 10) -> TrainedUpdate:
    """The update of a client that trained every slot it may."""
    slots = [slot for slot in Slice.from_dict(work.slice).travelling if slot.trained_by & set(tasks)]
    tensors = [encode_tensor(slot.id, small_delta(slot, client_id, work.round)) for slot in slots]
    done = TaskContribution(num_examples=examples, num_steps=1, loss=0.5, seconds=0.0)
    return TrainedUpdate(dict.fromkeys(tasks, done), tensors)


@dataclass
class MadeUpWork:
    """A `client.workload.Workload` that takes no time and no data.

    Attributes:
        before_training: called with the work before the update is made; may block or raise.
        received: a copy of every slot's value, per round.
    """

    before_training: Callable[[Work, threading.Event], None] | None = None
    examples: int = 10
    received: dict[int, dict[str, Array]] = field(default_factory=dict)
    welcome: Welcome | None = None

    def prepare(self, welcome: Welcome, assets: Mapping[str, bytes]) -> Mapping[str, DataReport]:
        """Nothing to load."""
        del assets
        self.welcome = welcome
        return {task: DataReport(train=self.examples, validation=4, source="made up") for task in welcome.tasks}

    def evaluate(
        self, work: Work, slice_: Slice, received: Received, cancelled: threading.Event
    ) -> Mapping[str, TaskEvaluation]:
        """The round as every metric."""
        del slice_, received, cancelled
        assert self.welcome is not None
        return {task: evaluation(self.welcome, task, float(work.version)) for task in self.welcome.tasks}

    def train(
        self, work: Work, slice_: Slice, received: Received, progress: Progress, cancelled: threading.Event
    ) -> TrainedUpdate:
        """A delta for each slot."""
        del slice_
        assert self.welcome is not None
        self.received[work.round] = {
            slot: np.array(decode_tensor(header, payload)) for slot, (header, payload) in received.items()
        }
        if self.before_training is not None:
            self.before_training(work, cancelled)
        progress(1, 1, 0.5)
        return work_done(work, self.welcome.tasks, self.welcome.client_id, self.examples)


class Tabled(MadeUpWork):
    """Reports these values, version by version, as every metric."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = values
        self.evaluated: list[int] = []

    def evaluate(self, work: Work, *rest: Any) -> Any:  # noqa: ANN401  # passed on
        self.evaluated.append(work.version)
        found = super().evaluate(work, *rest)
        value = self.values[min(work.version, len(self.values) - 1)]
        return {t: r.model_copy(update={"metrics": dict.fromkeys(r.metrics, value)}) for t, r in found.items()}


def evaluation(welcome: Welcome, task: str, value: float) -> TaskEvaluation:
    """Every metric of a task at one value."""
    metrics: Any = welcome.specs[task]["metrics"]
    return TaskEvaluation(metrics=dict.fromkeys(metrics, value), loss=1.0, examples=4)


def session(
    address: str,
    client_id: str,
    work: MadeUpWork | None = None,
    *,
    tasks: tuple[str, ...] = (),
    **identity: Any,  # noqa: ANN401  # fields of `Identity`
) -> Session:
    """A client with made-up work, not yet running."""
    return Session(
        Identity(address, client_id, tasks, **{"reconnect_s": 20.0, **identity}),
        work or MadeUpWork(),
        Display(terminal=False),
    )


class Peer:
    """The bare protocol: sends what the test says, reads what comes."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.welcome: Welcome | None = None
        self.work: Work | None = None
        self.values: dict[str, Array] = {}
        self.introduced = asyncio.Event()
        self._streams = 0

    async def send(self, message: Message) -> None:
        """Send one message."""
        await self.socket.send(encode_frame(message))

    async def receive(self) -> Message:
        """The next message that is no heartbeat."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                frame = await self.socket.recv()
            assert isinstance(frame, bytes)
            message = decode_frame(frame)
            if not isinstance(message, Heartbeat):
                return message

    async def expect(self, kind: type[Kind], *, skip: tuple[type[Message], ...] = (Chunk,)) -> Kind:
        """The next message, which has to be of this kind; those in `skip` may come before it."""
        while True:
            message = await self.receive()
            if isinstance(message, kind):
                return message
            assert isinstance(message, skip), f"{message!r} came instead of a {kind.__name__}"

    async def introduce(self, client_id: str, **hello: Any) -> Self:  # noqa: ANN401  # fields of `Hello`
        """Say hello and be welcomed."""
        await self.send(Hello(protocol=(PROTOCOL_VERSION,), client_id=client_id, **hello))
        self.welcome = await self.expect(Welcome)
        self.introduced.set()
        return self

    async def join(self, client_id: str, **hello: Any) -> Self:  # noqa: ANN401  # fields of `Hello`
        """... and claim to have data."""
        await self.introduce(client_id, **hello)
        assert self.welcome is not None
        report = DataReport(train=10, validation=4, source="made up")
        await self.send(Ready(tasks=dict.fromkeys(self.welcome.tasks, report)))
        return self

    async def take_work(self, *, skip: tuple[type[Message], ...] = (Chunk,)) -> Work:
        """The next work with its tensors."""
        self.work = work = await self.expect(Work, skip=skip)
        sink = MemorySink(work.tensors)
        receiver = StreamReceiver(work.stream, work.tensors, sink)
        while not receiver.complete:
            receiver.accept(await self.expect(Chunk, skip=()))
        self.values |= {
            header.slot: np.array(decode_tensor(header, sink.payload(i)))
            for i, header in enumerate(work.tensors)
            if not header.held
        }
        return work

    async def send_update(self, update: TrainedUpdate, **changes: Any) -> UpdateHeader:  # noqa: ANN401  # any field
        """Send an update for the work in hand; `changes` replace fields of its header."""
        assert self.work is not None
        assert self.welcome is not None
        self._streams += 1
        fields: dict[str, Any] = {
            "run_id": self.work.run_id,
            "round": self.work.round,
            "version": self.work.version,
            "plan": self.work.plan,
            "stream": self._streams,
            "tasks": dict(update.tasks),
            "tensors": tuple(tensor.header for tensor in update.tensors),
        }
        header = UpdateHeader(**fields | changes)
        await self.send(header)
        for frame in chunk_frames(self._streams, update.tensors, self.welcome.chunk_bytes):
            await self.socket.send(frame)
        return header

    async def beat(self) -> None:
        """From the welcome on say that it is alive, for ever."""
        await self.introduced.wait()
        sequence = 0
        while True:
            await self.send(Heartbeat(sequence=sequence))
            sequence += 1
            await asyncio.sleep(0.5)


@asynccontextmanager
async def peer(address: str, *, alive: bool = True) -> AsyncIterator[Peer]:
    """A connection; `alive` keeps it so with heartbeats after the hello."""
    async with connect(address, compression=None, max_size=1 << 26, ping_interval=None, proxy=None) as socket:
        bare = Peer(socket)
        beating: asyncio.Task[None] | None = None

        if alive:
            beating = asyncio.create_task(bare.beat())
        try:
            yield bare
        finally:
            if beating is not None:
                beating.cancel()
                with suppress(asyncio.CancelledError, ConnectionError, OSError):
                    await asyncio.gather(beating, return_exceptions=True)


def replaced(update: TrainedUpdate, *tensors: EncodedTensor) -> TrainedUpdate:
    """An update with some of its tensors replaced (by slot) and others added."""
    by_slot = {tensor.header.slot: tensor for tensor in update.tensors}
    return TrainedUpdate(update.tasks, list((by_slot | {tensor.header.slot: tensor for tensor in tensors}).values()))


async def events(url: str) -> AsyncIterator[dict[str, Any]]:
    """What the server's event stream says; the first is the status, with ``kind`` "status"."""
    async with (
        httpx.AsyncClient(trust_env=False, timeout=None) as http,  # noqa: S113  # quiet is normal; tests have limits
        http.stream("GET", f"{url}/api/v1/events") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        with suppress(httpx.RemoteProtocolError):  # the server ended
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    yield {"kind": "status", **json.loads(line.removeprefix("data: "))}


async def until(feed: AsyncIterator[dict[str, Any]], kind: str, **fields: object) -> dict[str, Any]:
    """The next event of this kind with these fields."""
    async with asyncio.timeout(PATIENCE_S):
        async for event in feed:
            if event["kind"] == kind and all(event.get(key) == value for key, value in fields.items()):
                return event
    raise AssertionError(f"the event stream ended without {kind} {fields}")


async def see_through(server: Server, *sessions: Session | Awaitable[Finished]) -> None:
    """Run sessions to the end of the run; they and the server end well."""
    runs = [member.run() if isinstance(member, Session) else member for member in sessions]
    async with asyncio.timeout(PATIENCE_S):
        ends = await asyncio.gather(*runs)
    assert {end.state for end in ends} == {"finished"}
    assert await asyncio.to_thread(server.wait) == 0
