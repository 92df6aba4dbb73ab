"""The client's session against a server of the test's own, over real sockets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from client.display import Display
from client.frozen_values import FrozenValues
from client.kept_update import KeptUpdates
from client.session import Identity, Session
from client.workload import Progress as Report
from client.workload import Received, TrainedUpdate, WorkCancelled, WorkDeclined
from common.blueprint import Blueprint, ParameterSpec
from common.errors import ConfigError, DataError, FedmtlError, PlanError, Refused, RunFailed
from common.messages import (
    Asset,
    Chunk,
    DataReport,
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
    TaskContribution,
    TaskEvaluation,
    UpdateAck,
    UpdateHeader,
    Welcome,
    Work,
)
from common.plan import SharingPlan, Slice
from common.stream import MemorySink, StreamReceiver, asset_frames, chunk_frames
from common.tensors import EncodedTensor, decode_tensor, encode_tensor
from common.wire import decode_frame, encode_frame

PATIENCE_S = 20.0
BOTH = frozenset({"mood", "topic"})
PLAN = SharingPlan.shared(
    Blueprint(
        "made-up",
        ("mood", "topic"),
        (
            ParameterSpec("body", (40, 100), "float32", BOTH, BOTH, "body"),
            ParameterSpec("empty", (0,), "float32", BOTH, BOTH, "body"),
            ParameterSpec("heads.mood", (3,), "float32", frozenset({"mood"}), frozenset({"mood"}), "head"),
        ),
    )
)
SLICE = PLAN.slice({"mood"})
TRAINING: dict[str, Any] = {"rate": 0.1}
Kind = TypeVar("Kind", bound=Message)


@dataclass
class Counting:
    """A workload that adds one; counts what it is asked for, and can be held up."""

    prepared: int = 0
    evaluated: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    durable_beside: bool = True
    on_prepare: Callable[[], None] | None = None
    on_train: Callable[[Report, threading.Event], None] | None = None

    def prepare(self, welcome: Welcome, assets: Mapping[str, bytes]) -> Mapping[str, DataReport]:
        self.prepared += 1
        self.assets = assets
        if self.on_prepare is not None:
            self.on_prepare()
        return {task: DataReport(train=5, validation=5, source="made up") for task in welcome.tasks}

    def evaluate(
        self, work: Work, slice_: Slice, received: Received, cancelled: threading.Event
    ) -> Mapping[str, TaskEvaluation]:
        del slice_, cancelled
        self.evaluated.append(work.version)
        mean = float(decode_tensor(*received["body@mood+topic"]).mean())
        return {"mood": TaskEvaluation(metrics={"mean": mean}, loss=0.0, examples=5)}

    def train(
        self, work: Work, slice_: Slice, received: Received, progress: Report, cancelled: threading.Event
    ) -> TrainedUpdate:
        del received
        self.trained.append(work.round)
        if self.on_train is not None:
            self.on_train(progress, cancelled)
        done = TaskContribution(num_examples=5, num_steps=1, loss=0.5, seconds=0.1)
        deltas = [encode_tensor(slot.id, np.full(slot.shape, work.round, np.float32)) for slot in slice_.travelling]
        return TrainedUpdate({"mood": done}, deltas, self.durable_beside)


class Link:
    """The server's end of one connection."""

    def __init__(self, socket: ServerConnection, number: int) -> None:
        self.socket = socket
        self.number = number
        self.streams = 0

    async def send(self, message: Message) -> None:
        await self.socket.send(encode_frame(message))

    async def receive(self) -> Message:
        """The next message that is neither a heartbeat nor progress."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                frame = await self.socket.recv()
            assert isinstance(frame, bytes)
            message = decode_frame(frame)
            if not isinstance(message, Heartbeat | Progress):
                return message

    async def expect(self, kind: type[Kind]) -> Kind:
        message = await self.receive()
        assert isinstance(message, kind), f"{message!r} came instead of a {kind.__name__}"
        return message

    async def welcome(self, **changes: Any) -> Hello:  # noqa: ANN401  # fields of `Welcome`
        hello = await self.expect(Hello)
        fields: dict[str, Any] = {
            "protocol": 1,
            "run_id": "run",
            "client_id": hello.client_id,
            "tasks": ("mood",),
            "seed": 1,
            "target_rounds": 2,
            "heartbeat_s": 0.2,
            "silence_s": 10.0,
            "chunk_bytes": 4096,
            "specs": {"mood": {}},
            "family": {},
        }
        await self.send(Welcome(**fields | changes))
        return hello

    async def meet(self) -> None:
        """Welcome the client and see it ready."""
        await self.welcome()
        await self.expect(Ready)

    async def work(
        self, round_id: int, *, train: bool = True, evaluate: bool = True, tensors: list[EncodedTensor] | None = None,
        chunks: int | None = None, run_id: str = "run", slice_: Slice = SLICE,
    ) -> None:  # fmt: skip
        """Send work; `chunks` cuts it off after so many frames."""
        self.streams += 1
        tensors = tensors if tensors is not None else values(round_id)
        message = Work(
            run_id=run_id,
            round=round_id,
            version=round_id - 1,
            target_rounds=2,
            plan=PLAN.digest,
            slice=slice_.to_dict(),
            evaluate=evaluate,
            training=TRAINING if train else None,
            stream=self.streams,
            tensors=tuple(tensor.header for tensor in tensors),
        )
        await self.send(message)
        for frame in list(chunk_frames(self.streams, tensors, 4096))[:chunks]:
            await self.socket.send(frame)

    async def update(self, *, header: UpdateHeader | None = None) -> tuple[UpdateHeader, dict[str, Any]]:
        """Receive an update whole."""
        header = header or await self.expect(UpdateHeader)
        sink = MemorySink(header.tensors)
        receiver = StreamReceiver(header.stream, header.tensors, sink)
        while not receiver.complete:
            receiver.accept(await self.expect(Chunk))
        return header, {t.slot: decode_tensor(t, sink.payload(i)) for i, t in enumerate(header.tensors)}

    async def acknowledge(self, header: UpdateHeader, *, duplicate: bool = False) -> None:
        await self.send(
            UpdateAck(round=header.round, version=header.version, update=header.digest, duplicate=duplicate)
        )

    async def cut(self) -> None:
        """Break the connection without a word."""
        self.socket.transport.abort()
        await self.socket.wait_closed()

    async def finish(self, state: str = "finished") -> None:
        await self.send(Finished(state=state, reason="so it is", rounds_completed=2))


def values(round_id: int) -> list[EncodedTensor]:
    return [
        encode_tensor(slot.id, np.full(slot.shape, round_id - 1 if slot.parameter == "body" else 7.0, np.float32))
        for slot in SLICE.travelling
    ]


Script = Callable[[Link], Awaitable[None]]


@asynccontextmanager
async def served(*scripts: Script) -> AsyncIterator[tuple[str, asyncio.Future[None]]]:
    """A server that plays one script per connection; the future is done when all have been played."""
    waiting = list(scripts)
    played = asyncio.get_running_loop().create_future()
    number = 0

    async def play(socket: ServerConnection) -> None:
        nonlocal number
        number += 1
        if number > len(waiting):
            await socket.close(1013)
            return
        try:
            await waiting[number - 1](Link(socket, number))
            if number == len(waiting) and not played.done():
                played.set_result(None)
            await socket.wait_closed()
        except Exception as error:  # noqa: BLE001  # told to the test
            if not played.done():
                played.set_exception(error)

    async with serve(play, "127.0.0.1", 0, compression=None, max_size=1 << 26) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/ws", played
        if not played.done():
            played.cancel()


async def take_part(
    workload: Counting,
    *scripts: Script,
    reconnect_s: float = 30.0,
    twin_patience_s: float = 0.0,
    kept: KeptUpdates | None = None,
    frozen: FrozenValues | None = None,
) -> Finished:
    """Run a session against these scripts; a script that fails fails the test."""
    async with served(*scripts) as (url, played), asyncio.timeout(2 * PATIENCE_S):
        identity = Identity(url, "c1", reconnect_s=reconnect_s, twin_patience_s=twin_patience_s)
        session = Session(identity, workload, Display(terminal=False), kept, frozen)
        member = asyncio.create_task(session.run())
        both: list[asyncio.Future[Any]] = [member, played]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if played.done() and played.exception() is not None:
            member.cancel()
            await asyncio.gather(member, return_exceptions=True)
            played.result()
        finished = await member
        await played
        return finished


async def test_a_run_from_hello_to_the_end() -> None:
    workload = Counting()

    async def script(link: Link) -> None:
        await link.meet()
        for number in (1, 2):
            await link.work(number)
            report = await link.expect(EvaluationReport)
            assert (report.round, report.version) == (number, number - 1)
            assert report.tasks["mood"].metrics == {"mean": number - 1}
            header, deltas = await link.update()
            assert (header.run_id, header.round, header.version, header.plan) == (
                "run",
                number,
                number - 1,
                PLAN.digest,
            )
            assert header.tasks["mood"].num_examples == 5
            assert deltas["body@mood+topic"].shape == (40, 100)
            assert (deltas["heads.mood@mood"] == number).all()
            await link.acknowledge(header)
        await link.work(3, train=False)
        await link.expect(EvaluationReport)
        await link.finish()

    finished = await take_part(workload, script)
    assert finished.rounds_completed == 2
    assert (workload.prepared, workload.evaluated, workload.trained) == (1, [0, 1, 2], [1, 2])


@pytest.mark.parametrize("received", ["nothing", "header", "all"])
async def test_a_broken_connection_brings_the_same_update_again_and_no_training(received: str) -> None:
    workload, digests = Counting(), []

    async def first(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        header = await link.expect(UpdateHeader)
        digests.append(header.digest)
        if received == "all":
            await link.update(header=header)
        await link.cut()

    async def second(link: Link) -> None:
        await link.meet()
        header, _ = await link.update()
        digests.append(header.digest)
        if received == "nothing":
            # The server asks again before it has seen what comes: it gets the same, and no second training.
            await link.work(1)
            await link.expect(EvaluationReport)
            again, _ = await link.update()
            digests.append(again.digest)
        await link.acknowledge(header, duplicate=received == "all")
        await link.finish()

    await take_part(workload, first, second)
    assert len(set(digests)) == 1
    assert (workload.prepared, workload.evaluated, workload.trained) == (1, [0], [1])


async def test_training_goes_on_while_the_network_is_away() -> None:
    gate, training = threading.Event(), threading.Event()

    def hold(progress: Report, cancelled: threading.Event) -> None:
        training.set()
        assert gate.wait(PATIENCE_S)
        assert not cancelled.is_set()
        for step in range(3000):  # more reports than an outbox takes, with nobody to read them
            progress(step, 3000, 0.5)

    workload = Counting(on_train=hold)

    async def first(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        assert await asyncio.to_thread(training.wait, PATIENCE_S)
        await link.cut()
        gate.set()

    async def second(link: Link) -> None:
        await link.meet()
        header, _ = await link.update()
        await link.acknowledge(header)
        await link.finish()

    await take_part(workload, first, second)
    assert workload.trained == [1]


async def test_nothing_but_ready_comes_before_ready() -> None:
    """A client that trains while it comes back must not report its progress to a server that does not know it yet."""
    gate, training = threading.Event(), threading.Event()

    def report(progress: Report, cancelled: threading.Event) -> None:
        training.set()
        for step in range(100_000):
            progress(step, 100_000, 0.5)
            if gate.wait(0.001) or cancelled.is_set():
                return

    async def first(link: Link) -> None:
        await link.meet()
        await link.work(1, evaluate=False)
        assert await asyncio.to_thread(training.wait, PATIENCE_S)
        await link.cut()

    async def second(link: Link) -> None:
        await link.expect(Hello)
        content = bytes(20_000)
        await link.send(
            Welcome(
                protocol=1, run_id="run", client_id="c1", tasks=("mood",), seed=1, target_rounds=2, heartbeat_s=0.2,
                silence_s=10.0, chunk_bytes=4096, specs={"mood": {}}, family={},
                assets=(Asset(name="late", sha256=ASSET_SHA, nbytes=len(content), stream=0),),
            )
        )  # fmt: skip
        for frame in asset_frames(0, content, 4096):
            frame_or_beat = await link.socket.recv()
            assert isinstance(frame_or_beat, bytes)
            assert isinstance(decode_frame(frame_or_beat), Heartbeat), "before ready only signs of life"
            await link.socket.send(frame)
        await link.expect(Ready)
        gate.set()
        header, _ = await link.update()
        await link.acknowledge(header)
        await link.finish()

    await take_part(Counting(on_train=report), first, second)


ASSET_SHA = "28b4f41a7f3ee6d8cc87272db6e09c6d3566551fd4d18702b041a21658272a85"


async def test_a_closed_round_is_stopped_and_can_be_asked_again() -> None:
    stopped = threading.Event()

    def until_cancelled(progress: Report, cancelled: threading.Event) -> None:
        del progress
        if not stopped.is_set():
            assert cancelled.wait(PATIENCE_S)
            stopped.set()
            raise WorkCancelled("the round is over")

    workload = Counting(on_train=until_cancelled)

    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        await link.send(RoundClosed(round=1, reason="the deadline passed"))
        assert await asyncio.to_thread(stopped.wait, PATIENCE_S)
        await link.work(1, evaluate=False)  # the second attempt at the same round
        header, _ = await link.update()
        await link.acknowledge(header)
        await link.finish()

    await take_part(workload, script)
    assert workload.trained == [1, 1]


async def test_newer_work_takes_the_place_of_older() -> None:
    def until_cancelled(progress: Report, cancelled: threading.Event) -> None:
        del progress
        if workload.trained == [1]:
            assert cancelled.wait(PATIENCE_S)

    workload = Counting(on_train=until_cancelled)

    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        await link.work(2, chunks=1)  # cut off by the next
        await link.work(2, evaluate=False)
        header, _ = await link.update()
        assert header.round == 2, "what was trained for round 1 is not sent"
        await link.acknowledge(header)
        await link.finish()

    await take_part(workload, script)


@pytest.mark.parametrize("code", ["future_round", "internal"])
async def test_an_update_that_came_too_early_is_kept(code: str) -> None:
    """The server restarted, and the round has not begun again when the client comes back with its update."""
    workload = Counting()

    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        header, _ = await link.update()
        await link.send(Rejected(code=code, reason="not now", round=1))
        await link.work(1)
        await link.expect(EvaluationReport)
        again, _ = await link.update()
        assert (again.digest, again.stream) != (header.digest, header.stream)
        assert again.digest == header.digest
        await link.acknowledge(again)
        await link.finish()

    await take_part(workload, script)
    assert workload.trained == [1]


@pytest.mark.parametrize("received", ["nothing", "all"])
async def test_a_client_started_again_sends_what_it_had_finished(tmp_path: Path, received: str) -> None:
    digests, gone = [], asyncio.Event()

    async def first(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        header = await link.expect(UpdateHeader)
        if received == "all":
            await link.update(header=header)
        digests.append(header.digest)
        gone.set()
        assert isinstance(await link.receive(), Goodbye | Chunk)

    async with served(first) as (url, _), asyncio.timeout(PATIENCE_S):
        store = KeptUpdates(tmp_path, "c1")
        member = asyncio.create_task(Session(Identity(url, "c1"), Counting(), Display(terminal=False), store).run())
        await gone.wait()
        member.cancel()
        await asyncio.gather(member, return_exceptions=True)
    assert kept_in(tmp_path) == 1

    async def second(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        header, deltas = await link.update()
        digests.append(header.digest)
        assert (deltas["heads.mood@mood"] == 1).all()
        assert header.tasks["mood"].seconds == 0.1
        await link.acknowledge(header)
        await link.work(2)
        await link.expect(EvaluationReport)
        header, _ = await link.update()
        await link.send(Rejected(code="quarantined", reason="too many bad updates", round=2))
        await link.work(2, evaluate=False)  # it stays, and has nothing to send but what it makes anew
        header, _ = await link.update()
        await link.acknowledge(header)
        await link.finish()

    workload = Counting()
    await take_part(workload, second, kept=KeptUpdates(tmp_path, "c1"))
    assert len(set(digests)) == 1
    assert workload.trained == [2, 2], "what was refused is not kept"
    assert kept_in(tmp_path) == 0


@pytest.mark.parametrize("durable", [True, False])
async def test_an_update_is_kept_only_together_with_what_is_remembered_of_its_round(
    tmp_path: Path, durable: bool
) -> None:
    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        header, _ = await link.update()
        assert kept_in(tmp_path) == durable
        await link.acknowledge(header)
        await link.finish()

    await take_part(Counting(durable_beside=durable), script, kept=KeptUpdates(tmp_path, "c1"))


async def test_a_round_that_is_repeated_gets_what_is_kept(tmp_path: Path) -> None:
    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        await link.update()
        await link.send(RoundClosed(round=1, reason="no quorum"))
        await link.work(1, evaluate=False)
        header, _ = await link.update()
        await link.acknowledge(header)
        await link.finish()

    workload = Counting()
    await take_part(workload, script, kept=KeptUpdates(tmp_path, "c1"))
    assert workload.trained == [1]
    assert kept_in(tmp_path) == 0


def kept_in(folder: Path) -> int:
    return len(list(folder.rglob("*.update")))


async def test_a_refused_update_is_made_anew_when_it_is_asked_again() -> None:
    workload = Counting()

    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        await link.update()
        await link.send(Rejected(code="checksum", reason="altered", round=1))
        await link.work(1, evaluate=False)
        header, _ = await link.update()
        await link.acknowledge(header)
        await link.finish()

    await take_part(workload, script)
    assert workload.trained == [1, 1]


async def test_a_decline_is_told_again_after_a_broken_connection() -> None:
    gate = threading.Event()

    def decline(progress: Report, cancelled: threading.Event) -> None:
        del progress, cancelled
        assert gate.wait(PATIENCE_S)
        raise WorkDeclined("out of memory")

    workload = Counting(on_train=decline)

    async def first(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        await link.cut()
        gate.set()

    async def second(link: Link) -> None:
        await link.meet()
        await link.work(1, evaluate=False)
        declined = await link.expect(Declined)
        assert (declined.round, declined.reason) == (1, "out of memory")
        await link.finish()

    await take_part(workload, first, second)
    assert workload.trained == [1]


async def test_another_run_voids_what_was_done() -> None:
    workload = Counting()

    async def first(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        await link.expect(UpdateHeader)
        await link.cut()

    async def second(link: Link) -> None:
        await link.welcome(run_id="another")
        await link.expect(Ready)
        await link.work(1, run_id="another")
        await link.expect(EvaluationReport)
        header, _ = await link.update()
        assert header.run_id == "another"
        await link.acknowledge(header)
        await link.finish()

    await take_part(workload, first, second)
    assert (workload.prepared, workload.trained) == (2, [1, 1])


async def test_held_tensors_are_not_sent_twice() -> None:
    workload = Counting()

    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1, train=False)
        await link.expect(EvaluationReport)
        body, empty, head = values(2)
        await link.work(2, train=False, tensors=[body, empty, head.as_held()])
        assert (await link.expect(EvaluationReport)).tasks["mood"].metrics == {"mean": 1.0}
        await link.work(3, train=False, tensors=[tensor.as_held() for tensor in (body, empty, head)])
        assert (await link.expect(EvaluationReport)).tasks["mood"].metrics == {"mean": 1.0}
        await link.finish()

    await take_part(workload, script)


async def test_nothing_is_held_on_a_new_connection() -> None:
    async def first(link: Link) -> None:
        await link.meet()
        await link.work(1, train=False)
        await link.expect(EvaluationReport)
        await link.work(2, train=False, tensors=[values(3)[0].as_held(), *values(3)[1:]])
        with pytest.raises(ConnectionClosed):
            await link.receive()

    async def second(link: Link) -> None:
        await link.meet()
        await link.finish()

    await take_part(Counting(), first, second)


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 100, "text", encode_frame(Goodbye(reason="not yours to say"))])
async def test_garbage_ends_the_connection_and_not_the_client(garbage: bytes | str) -> None:
    async def first(link: Link) -> None:
        await link.meet()
        await link.socket.send(garbage)
        with pytest.raises(ConnectionClosed):
            await link.receive()  # no goodbye: it comes back

    async def second(link: Link) -> None:
        await link.meet()
        await link.finish()

    await take_part(Counting(), first, second)


async def test_a_connection_that_never_works_comes_to_an_end() -> None:
    async def script(link: Link) -> None:
        await link.meet()
        await link.socket.send(b"garbage")

    with pytest.raises(RunFailed, match="could not be reached for 1 s") as raised:
        await take_part(Counting(), *[script] * 50, reconnect_s=1.0)
    assert raised.value.exit_code == 3


async def test_a_silent_server_counts_as_dead() -> None:
    async def first(link: Link) -> None:
        await link.welcome(silence_s=0.5)
        with pytest.raises(ConnectionClosed):
            await link.receive()

    async def second(link: Link) -> None:
        await link.meet()
        await link.finish()

    await take_part(Counting(), first, second)


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        ("authentication", Refused, 4),
        ("protocol_version", Refused, 4),
        ("plan_mismatch", Refused, 4),
        ("task_not_allowed", Refused, 4),
        ("encoding", Refused, 4),
        ("malformed", Refused, 4),
        ("unknown_task", ConfigError, 2),
        ("duplicate_client", Refused, 4),
        ("taken_over", Refused, 4),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["hello", "ready"])
async def test_refusals_end_the_client(code: str, kind: type[FedmtlError], exit_code: int, late: bool) -> None:
    async def script(link: Link) -> None:
        if late and code != "duplicate_client":  # which is told at hello only
            await link.meet()
        else:
            await link.expect(Hello)
        await link.send(Refusal(code=code, reason="no"))
        await link.socket.close(1008)

    with pytest.raises(kind) as raised:
        await take_part(Counting(), script)
    assert raised.value.exit_code == exit_code


@pytest.mark.parametrize("code", ["busy", "shutting_down"])
async def test_passing_refusals_are_waited_out(code: str) -> None:
    async def first(link: Link) -> None:
        await link.expect(Hello)
        await link.send(Refusal(code=code, reason="later"))

    async def second(link: Link) -> None:
        await link.meet()
        await link.cut()

    async def third(link: Link) -> None:
        # The server has not noticed yet that the old connection is dead.
        await link.expect(Hello)
        await link.send(Refusal(code="duplicate_client", reason="you are here"))

    async def fourth(link: Link) -> None:
        await link.meet()
        await link.finish()

    await take_part(Counting(), first, second, third, fourth)


async def test_a_client_in_our_place_may_be_our_own_dead_connection() -> None:
    """This process follows one that was killed so fast that the server has not noticed."""

    async def first(link: Link) -> None:
        await link.expect(Hello)
        await link.send(Refusal(code="duplicate_client", reason="you are here"))

    async def second(link: Link) -> None:
        await link.meet()
        await link.finish()

    await take_part(Counting(), first, second, twin_patience_s=30.0)


async def test_a_client_whose_place_is_taken_does_not_take_it_back() -> None:
    async def first(link: Link) -> None:
        await link.meet()
        await link.cut()

    async def second(link: Link) -> None:
        await link.meet()
        await link.send(Refusal(code="taken_over", reason="from 127.0.0.1"))
        await link.socket.close(1008)

    with pytest.raises(Refused, match="another client with this id took over: from 127") as raised:
        await take_part(Counting(), first, second)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("status", [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE])
async def test_a_connection_refused_by_http_is_tried_again(
    status: HTTPStatus, caplog: pytest.LogCaptureFixture
) -> None:
    refused = 0

    def first_refuse(connection: ServerConnection, request: Request) -> Response | None:
        nonlocal refused
        del request
        refused += 1
        return connection.respond(status, "too many\nof you") if refused < 3 else None

    async def finish(socket: ServerConnection) -> None:
        await Link(socket, 1).welcome()
        await Link(socket, 1).finish()

    async with serve(finish, "127.0.0.1", 0, process_request=first_refuse) as server, asyncio.timeout(PATIENCE_S):
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"
        await Session(Identity(url, "c1"), Counting(), Display(terminal=False)).run()
    assert refused == 3
    assert f"no connection to {url}: HTTP {status.value} {status.phrase}: too many of you" in caplog.text


async def test_a_suspended_client_reads_before_it_judges() -> None:
    """While it could not run the server spoke; only what is still unread after that would be silence."""
    content = bytes(12 << 20)

    async def script(link: Link) -> None:
        await link.welcome(
            silence_s=2.0,
            assets=(Asset(name="big", sha256=sha256(content).hexdigest(), nbytes=len(content), stream=0),),
        )
        assert isinstance(await link.socket.recv(), bytes), "a heartbeat: it watches"
        [frame] = asset_frames(0, content, len(content))
        sending = asyncio.create_task(link.socket.send(frame))
        await asyncio.sleep(0)
        time.sleep(2.2)  # noqa: ASYNC251  # both ends share this thread: the client is suspended
        await sending
        await link.expect(Ready)
        await link.finish()

    await take_part(Counting(), script)


async def test_a_failed_run_is_an_error() -> None:
    async def script(link: Link) -> None:
        await link.meet()
        await link.finish("failed")

    with pytest.raises(RunFailed, match="the run failed: so it is") as raised:
        await take_part(Counting(), script)
    assert raised.value.exit_code == 3


async def test_a_stopped_server_is_waited_for() -> None:
    async def first(link: Link) -> None:
        await link.meet()
        await link.finish("stopped")

    async def second(link: Link) -> None:
        await link.welcome()
        await link.finish()

    await take_part(Counting(), first, second)


async def test_patience_has_an_end() -> None:
    async def script(link: Link) -> None:
        await link.meet()
        await link.cut()

    with pytest.raises(RunFailed, match=r"could not be reached for 0\.5 s"):
        await take_part(Counting(), script, reconnect_s=0.5)


async def test_bad_data_is_told_and_ends_the_client() -> None:
    def refuse() -> None:
        raise DataError("rows.csv: row 3 has no label")

    async def script(link: Link) -> None:
        await link.welcome()
        goodbye = await link.expect(Goodbye)
        assert goodbye.reason == "DataError: rows.csv: row 3 has no label"

    with pytest.raises(DataError, match="row 3") as raised:
        await take_part(Counting(on_prepare=refuse), script)
    assert raised.value.exit_code == 2


async def test_data_is_loaded_once_though_the_connection_breaks_meanwhile() -> None:
    gate, loading = threading.Event(), threading.Event()

    def hold() -> None:
        loading.set()
        assert gate.wait(PATIENCE_S)

    workload = Counting(on_prepare=hold)

    async def first(link: Link) -> None:
        await link.welcome()
        assert await asyncio.to_thread(loading.wait, PATIENCE_S)
        await link.cut()

    async def second(link: Link) -> None:
        await link.welcome()
        gate.set()
        await link.expect(Ready)
        await link.finish()

    await take_part(workload, first, second)
    assert workload.prepared == 1


@pytest.mark.parametrize(
    ("error", "kind", "exit_code"),
    [
        (PlanError("no such slot"), Refused, 4),
        (ValueError("a bug"), ValueError, None),
        (OSError("disk"), OSError, None),
    ],
)
async def test_an_error_of_training_ends_the_client(error: Exception, kind: type[Exception], exit_code: int) -> None:
    def fail(progress: Report, cancelled: threading.Event) -> None:
        del progress, cancelled
        raise error

    async def script(link: Link) -> None:
        await link.meet()
        await link.work(1)
        await link.expect(EvaluationReport)
        assert isinstance(await link.receive(), Goodbye)

    with pytest.raises(kind) as raised:
        await take_part(Counting(on_train=fail), script)
    assert getattr(raised.value, "exit_code", None) == exit_code


async def test_a_client_that_is_stopped_says_goodbye() -> None:
    ready = asyncio.Event()

    async def script(link: Link) -> None:
        await link.meet()
        ready.set()
        assert isinstance(await link.receive(), Goodbye)

    async with served(script) as (url, played), asyncio.timeout(PATIENCE_S):
        member = asyncio.create_task(Session(Identity(url, "c1"), Counting(), Display(terminal=False)).run())
        await ready.wait()
        member.cancel()
        with pytest.raises(asyncio.CancelledError):
            await member
        await played
