"""Mutated input for everything that reads what a peer sent or a crash left: `make fuzz`, and in short `make test`.

Each kind of input is a function of a seeded `random.Random`: it makes one input, feeds it, and returns whether it was
taken. What it may raise is the documented error of the code under test and nothing else; any other exception, an input
that takes longer than `MAX_SECONDS`, and memory that grows beyond `MAX_MIB` is a crash. An input is named by (seed,
kind, number) and can be repeated by `one`.
"""

from __future__ import annotations

import gc
import hashlib
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgpack
import numpy as np

from common.errors import PlanError, ProtocolError
from common.messages import MESSAGE_TYPES, Asset, Chunk, Message, TaskContribution, TensorHeader, UpdateHeader
from common.plan import SharingPlan, Slice, Slot
from common.stream import AssetReceiver, MemorySink, StreamLimits, StreamReceiver, chunk_frames
from common.tensors import EncodedTensor, decode_tensor, encode_tensor
from common.wire import CHECKSUM_BYTES, decode_frame, encode_frame
from server.aggregation.deltas import RowsDelta
from server.connection import CLIENT_ENTRIES
from server.spool import SpooledUpdate, SpoolError, SpoolWriter
from tests.common.plan_strategies import glue_blueprint
from tests.faults.corpus import valid_messages
from tests.faults.mutation import mutate_bytes, mutate_structure, sealed

MAX_SECONDS: Final = 1.0
MAX_MIB: Final = 512.0
#: No tensor of the streams is larger.
LIMITS: Final = StreamLimits(max_tensors=64, max_tensor_bytes=1 << 20, max_total_bytes=1 << 22)
MESSAGES: Final[tuple[Message, ...]] = valid_messages()
#: Longer frames are only decoded, so that the time is that of one decoding.
_COMPARED_BYTES: Final = 10_000
_PLAN: Final = SharingPlan.shared(glue_blueprint())


@contextmanager
def _only(*allowed: type[Exception]) -> Iterator[list[bool]]:
    """Yields a list that holds True once the block ended without one of the allowed errors."""
    taken: list[bool] = []
    try:
        yield taken
        taken.append(True)
    except allowed:
        pass


def _decode(data: bytes) -> bool:
    with _only(ProtocolError) as taken:
        message = decode_frame(data, max_entries=CLIENT_ENTRIES)
        assert isinstance(message, tuple(MESSAGE_TYPES.values()))
        if len(data) < _COMPARED_BYTES:
            # What was accepted can be sent on, and says the same again.
            again = decode_frame(encode_frame(message))
            assert again == message or isinstance(message, Chunk)
    return bool(taken)


def frames(chance: random.Random) -> bool:
    """A frame with bytes changed: the checksum stands in its way."""
    return _decode(mutate_bytes(encode_frame(chance.choice(MESSAGES)), chance))


def bodies(chance: random.Random) -> bool:
    """A body with bytes changed under the right checksum: to msgpack and to the models."""
    return _decode(sealed(mutate_bytes(encode_frame(chance.choice(MESSAGES))[:-CHECKSUM_BYTES], chance)))


def messages(chance: random.Random) -> bool:
    """A message of which some fields are something else: to the models."""
    content = mutate_structure(chance.choice(MESSAGES).model_dump(), chance)
    try:
        body = msgpack.packb(content)
    except (ValueError, OverflowError, TypeError):
        body = msgpack.packb({"type": "hello"})  # nothing that msgpack can say
    return _decode(sealed(body))


def _tensors(chance: random.Random) -> list[EncodedTensor]:
    numbers = np.random.default_rng(chance.getrandbits(32))
    arrays = [
        numbers.normal(size=chance.choice([(), (3,), (40, 5), (0, 4), (2, 3, 4)])).astype("<f4") for _ in range(3)
    ]
    arrays.append(np.where(numbers.random((200, 4)) < 0.05, 1.0, 0.0).astype("<f4"))
    return [encode_tensor(f"p{number}@t", array, allow_rows=True) for number, array in enumerate(arrays)]


def streams(chance: random.Random) -> bool:
    """Headers and chunks of a stream, with one thing wrong among them: to the receiver, then to the decoder."""
    tensors = _tensors(chance)
    headers: list[Any] = [tensor.header.model_dump() for tensor in tensors]
    frames_ = list(chunk_frames(1, tensors, 256))
    if chance.random() < 0.5:
        headers = mutate_structure(headers, chance)
    if frames_ and chance.random() < 0.7:
        at = chance.randrange(len(frames_))
        match chance.randrange(4):
            case 0:
                frames_[at] = sealed(mutate_bytes(frames_[at][:-CHECKSUM_BYTES], chance))
            case 1:
                frames_.insert(chance.randrange(len(frames_)), frames_[at])
            case 2:
                del frames_[at]
            case _:
                chance.shuffle(frames_)
    with _only(ProtocolError) as taken:
        announced = _headers(headers)
        sink = MemorySink(announced)
        receiver = StreamReceiver(1, announced, sink, LIMITS)
        for frame in frames_:
            chunk = decode_frame(frame)
            if isinstance(chunk, Chunk):
                receiver.accept(chunk)
        if not receiver.complete:
            return False
        for index, header in enumerate(announced):
            if not header.held:
                assert decode_tensor(header, sink.payload(index)).shape == header.shape
    return bool(taken)


def _headers(written: object) -> tuple[TensorHeader, ...]:
    """Headers as they come in a message.

    Raises:
        ProtocolError: they could not have come.
    """
    done = TaskContribution(num_examples=1, num_steps=1, loss=0.0, seconds=0.0)
    update = UpdateHeader(run_id="r", round=1, version=0, plan="0", stream=1, tasks={"t": done}, tensors=())
    try:
        message = decode_frame(sealed(msgpack.packb({**update.model_dump(), "tensors": written})))
    except (ValueError, OverflowError, TypeError) as error:
        raise ProtocolError("malformed", "nothing that msgpack can say") from error
    assert isinstance(message, UpdateHeader)
    return message.tensors


def assets(chance: random.Random) -> bool:
    """Chunks of an asset, of which some are not what was announced."""
    content = chance.randbytes(chance.choice((0, 1, 7, 64, 1000)))
    sha256 = hashlib.sha256(content if chance.random() < 0.7 else b"another").hexdigest()
    asset = Asset(name="a", sha256=sha256, nbytes=len(content), stream=2)
    with _only(ProtocolError) as taken:
        receiver = AssetReceiver(asset, 4096)
        while not receiver.complete:
            offset = chance.choice((0, 0, 8, 64, 2**64 - 1))
            receiver.accept(Chunk(stream=chance.choice((2, 2, 2, 3)), tensor=0, offset=offset, data=content[:64]))
        receiver.content()
    return bool(taken)


class UpdateFiles:
    """Files of updates, torn and altered. Needs a folder, which is why it is no function."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "c.update"
        self._whole = [self._write(folder, random.Random(seed)) for seed in range(8)]  # noqa: S311  # no secret

    @staticmethod
    def _write(folder: Path, chance: random.Random) -> bytes:
        tensors = _tensors(chance)
        header = UpdateHeader(
            run_id="r",
            round=1,
            version=0,
            plan="0",
            stream=1,
            tasks={"t": TaskContribution(num_examples=1, num_steps=1, loss=0.0, seconds=0.0)},
            tensors=tuple(tensor.header for tensor in tensors),
        )
        writer = SpoolWriter(folder, header, "whole")
        receiver = StreamReceiver(1, header.tensors, writer)
        for frame in chunk_frames(1, tensors, 4096):
            chunk = decode_frame(frame)
            assert isinstance(chunk, Chunk)
            receiver.accept(chunk)
        return writer.commit().path.read_bytes()

    def __call__(self, chance: random.Random) -> bool:
        """Load, verify and read one."""
        whole = chance.choice(self._whole)
        cut = chance.randrange(len(whole))
        self._file.write_bytes(whole[:cut] if chance.random() < 0.2 else mutate_bytes(whole, chance))
        with _only(SpoolError) as taken:
            update = SpooledUpdate.load(self._file)
            update.verify()
            update.open()
            try:
                for header in update.header.tensors:
                    delta = update.delta(header.slot)
                    assert not isinstance(delta, RowsDelta) or delta.shape == header.shape
            finally:
                update.close()
        return bool(taken)


def plans(chance: random.Random) -> bool:
    """A plan, slice or slot of which something is something else."""
    read: Callable[[Any], object]
    match chance.randrange(3):
        case 0:
            written, read = _PLAN.to_dict(), SharingPlan.from_dict
        case 1:
            written, read = _PLAN.slice(["sst2", "qqp"]).to_dict(), Slice.from_dict
        case _:
            written, read = chance.choice(_PLAN.slots).to_dict(), Slot.from_dict
    with _only(PlanError) as taken:
        read(mutate_structure(written, chance))
    return bool(taken)


#: Kind of input to how many of a hundred are of it.
SHARES: Final[Mapping[str, int]] = MappingProxyType(
    {"frames": 10, "bodies": 30, "messages": 30, "streams": 10, "assets": 5, "update_files": 5, "plans": 10}
)


@dataclass
class Outcome:
    """What a run of the fuzzer found.

    Attributes:
        inputs: fed, by kind.
        taken: accepted as valid, by kind.
        slowest_s: longest time of one input, by kind.
        crashes: what went wrong: kind, seed, number and traceback of each.
        grown_mib: how much the process's peak memory grew.
    """

    inputs: dict[str, int] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    slowest_s: dict[str, float] = field(default_factory=dict)
    crashes: list[dict[str, Any]] = field(default_factory=list)
    grown_mib: float = 0.0


@contextmanager
def kinds() -> Iterator[dict[str, Callable[[random.Random], bool]]]:
    """Every kind of input by name."""
    with tempfile.TemporaryDirectory() as folder:
        yield {
            "frames": frames,
            "bodies": bodies,
            "messages": messages,
            "streams": streams,
            "assets": assets,
            "update_files": UpdateFiles(Path(folder)),
            "plans": plans,
        }


def chance_of(seed: int, kind: str, number: int) -> random.Random:
    """What makes one input."""
    return random.Random(f"{seed}/{kind}/{number}")  # noqa: S311  # not a secret, and must be repeatable


def one(seed: int, kind: str, number: int) -> bool:
    """Feed one input again; raises what it raises."""
    with kinds() as feeds:
        return feeds[kind](chance_of(seed, kind, number))


def fuzz(inputs: int, seed: int, max_crashes: int = 20) -> Outcome:
    """Feed about so many inputs.

    Args:
        inputs: how many in all; each kind has its share of them.
        seed: names the inputs.
        max_crashes: ends it after so many.
    """
    outcome = Outcome()
    # As the server does at its start: what was imported is not looked through again for each large input.
    gc.freeze()
    before = _peak_mib()
    with kinds() as feeds:
        for kind, share in SHARES.items():
            outcome.inputs[kind] = outcome.taken[kind] = 0
            outcome.slowest_s[kind] = 0.0
            for number in range(-(-inputs * share // 100)):
                if len(outcome.crashes) >= max_crashes:
                    return outcome
                _feed(outcome, feeds[kind], seed, kind, number)
    outcome.grown_mib = _peak_mib() - before
    if outcome.grown_mib > MAX_MIB:
        outcome.crashes.append({"kind": "memory", "what": f"peak memory grew by {outcome.grown_mib:.0f} MiB"})
    return outcome


def _feed(outcome: Outcome, feed: Callable[[random.Random], bool], seed: int, kind: str, number: int) -> None:
    named = {"kind": kind, "seed": seed, "number": number}
    chance = chance_of(seed, kind, number)
    # Of this thread alone: the machine may be busy with other things.
    began = time.thread_time()
    try:
        outcome.taken[kind] += feed(chance)
    except Exception:  # noqa: BLE001  # whatever it is, it is what this looks for
        outcome.crashes.append({**named, "what": traceback.format_exc()})
    seconds = time.thread_time() - began
    outcome.inputs[kind] += 1
    outcome.slowest_s[kind] = max(outcome.slowest_s[kind], seconds)
    if seconds > MAX_SECONDS:
        outcome.crashes.append({**named, "what": f"took {seconds:.1f} s"})


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
