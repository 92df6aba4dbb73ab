"""Every message of the federation protocol, as docs/protocol.md specifies it.

Both ends validate what they receive with these models: types are strict (no ``"3"`` for ``3``), every
string, list and number is bounded, unknown fields are ignored so that a newer peer may say more.
The bytes around them are the matter of `common.wire`, tensors of `common.tensors` and `common.stream`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import msgpack
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    JsonValue,
    field_validator,
    model_validator,
)

from common.value_key import KEY_BYTES, MAX_HELD, ValueKey

#: The protocol version this code speaks; a peer lists the ones it speaks in `Hello`.
PROTOCOL_VERSION: Final = 1
#: Deepest nesting of a free-form value (a task's specification, a model family's description).
MAX_NESTING: Final = 32

DType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]
#: Bytes of one element, for each element type that may travel.
ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
)
#: Tensor payload sections and all chunks but a tensor's last are multiples of this many bytes.
ALIGNMENT: Final = 8

T = TypeVar("T")


def _plain(value: object) -> object:
    """Refuse a value nested deeper than `MAX_NESTING` before anything recurses into it, and numbers JSON can't say."""
    level: list[object] = [value]
    for _ in range(MAX_NESTING):
        if any(isinstance(inner, float) and not math.isfinite(inner) for inner in level):
            raise ValueError("a number that is not finite")
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_NESTING} levels")


# A field's own strictness does not reach its items: a list becomes a tuple, its items stay strict.
Items = Annotated[tuple[T, ...], Field(strict=False, max_length=16_384)]
ShortItems = Annotated[tuple[T, ...], Field(strict=False, max_length=256)]
Free = Annotated[dict[str, JsonValue], BeforeValidator(_plain)]

ClientId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Name = Annotated[str, Field(min_length=1, max_length=256)]
SlotId = Annotated[str, Field(min_length=1, max_length=4096)]


def _one_line(text: str) -> str:
    """Without line ends and control characters: a peer's sentence goes into logs, where it may not look like a line."""
    return "".join(character if character.isprintable() else " " for character in text)


Text = Annotated[str, Field(max_length=2000), AfterValidator(_one_line)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Round = Annotated[int, Field(ge=0, le=2**31 - 1)]
U32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
#: A loss or metric: bounded, so that sums weighted by examples stay finite whatever peers report.
Measured = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class WireModel(BaseModel):
    """Frozen, strict, and tolerant of fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


class TensorHeader(WireModel):
    """What one tensor of a transfer is and how its payload is laid out; inconsistent ones can't be built.

    Attributes:
        slot: id of the slot.
        dtype: element type.
        shape: dimensions of the dense tensor; ``()`` is a scalar.
        encoding: ``raw`` (all elements, row-major, little-endian) or ``rows`` (only the rows that
            differ from zero: their indices, then their elements).
        rows: number of rows in the payload when `encoding` is ``rows``, else None.
        nbytes: length of the whole payload.
        checksum: XXH3-64 of the whole payload.
        held: the receiver already has this value: from this connection (same slot, same checksum), or on its disk, as
            it said in `Ready.held` (same checksum, same size); no chunk follows.
    """

    slot: SlotId
    dtype: DType
    shape: Annotated[tuple[Count, ...], Field(strict=False, max_length=8)]
    encoding: Literal["raw", "rows"] = "raw"
    rows: U32 | None = None
    nbytes: Count
    checksum: U64
    held: bool = False

    @property
    def key(self) -> ValueKey:
        """The name of the payload."""
        return ValueKey(self.checksum, self.nbytes)

    @property
    def numel(self) -> int:
        """Elements of the dense tensor."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (all dimensions but the first)."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def index_bytes(self) -> int:
        """Bytes of the index section, padding included; 0 for ``raw``."""
        return -(-4 * (self.rows or 0) // ALIGNMENT) * ALIGNMENT

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.encoding == "raw":
            if self.rows is not None:
                raise ValueError("raw tensors have no row count")
            expected = self.numel * ITEM_BYTES[self.dtype]
        else:
            if self.rows is None or len(self.shape) < 2 or self.rows > self.shape[0]:
                raise ValueError("rows encoding needs 2 dimensions or more and a row count within the first")
            expected = self.index_bytes + self.rows * self.row_bytes
        if self.nbytes != expected:
            raise ValueError(f"payload of {self.nbytes} bytes, {expected} by shape, dtype and encoding")
        return self


def _require_unique_slots(headers: Sequence[TensorHeader]) -> None:
    if len({header.slot for header in headers}) != len(headers):
        raise ValueError("a slot is listed twice")


def base_digest(headers: Iterable[TensorHeader]) -> str:
    """32 hex digits that say which values a work brings: SHA-256 of its slots and their checksums, in order."""
    content = [[header.slot, header.checksum] for header in headers]
    return hashlib.sha256(msgpack.packb(content)).hexdigest()[:32]


class DataReport(WireModel):
    """What a client has loaded for one task: numbers of examples and where they come from."""

    train: Count
    validation: Count
    source: Text


class TaskEvaluation(WireModel):
    """Values of the received model on a client's validation data for one task."""

    metrics: Annotated[dict[Name, Measured], Field(max_length=64)]
    loss: Measured
    examples: Count


class GateReport(WireModel):
    """What one gate did with one task's examples in a round.

    Attributes:
        experts: blueprint groups of the experts that it weighs.
        mass: per expert the sum of its weights over the examples trained on.
        entropy: mean entropy of the weights of an example, in nats.
    """

    experts: ShortItems[Name]
    mass: Annotated[tuple[Finite, ...], Field(strict=False, max_length=256)]
    entropy: Finite


class TaskContribution(WireModel):
    """What a client did for one task in a round.

    Attributes:
        num_examples: training examples seen this round: the weight of the client within its task.
        num_steps: optimiser steps.
        loss: mean training loss.
        seconds: time spent.
        gates: gate to what it did with these examples, for a family with experts.
    """

    num_examples: Count
    num_steps: Count
    loss: Finite
    seconds: Seconds
    gates: Annotated[dict[Name, GateReport], Field(max_length=256)] = {}


class Asset(WireModel):
    """A file of the model family (a tokenizer); its bytes come as a chunk stream unless the client holds it."""

    name: Name
    sha256: Sha256
    nbytes: Count
    stream: U32


class Hello(WireModel):
    """First message of a client.

    Attributes:
        protocol: the versions it speaks.
        client_id: who it is; the file name and log field it is known by.
        tasks: what it has data for; empty means that the server infers the one task from `client_id`.
        token: proof of identity where the server asks for one.
        sync: ``slice`` for the slots of its tasks only, ``full`` for the whole unified model.
        encodings_up: transfer encodings it can send.
        encodings_down: transfer encodings it can read.
        assets: sha256 of the assets it already holds.
        software: free text for the log.
    """

    type: Literal["hello"] = "hello"
    protocol: Annotated[tuple[U32, ...], Field(strict=False, min_length=1, max_length=64)]
    client_id: ClientId
    tasks: ShortItems[Name] = ()
    token: Annotated[str, Field(max_length=4096)] | None = None
    sync: Literal["slice", "full"] = "slice"
    encodings_up: ShortItems[Name] = ("raw",)
    encodings_down: ShortItems[Name] = ("raw",)
    assets: ShortItems[Sha256] = ()
    software: Text = ""


class Ready(WireModel):
    """The client's data is loaded and valid; from now on the server may send `Work`.

    Attributes:
        tasks: what was loaded for each task.
        held: payloads that the client has on its disk (`common.value_key.pack_keys`): the first work that is sent
            completely need not bring them.
    """

    type: Literal["ready"] = "ready"
    tasks: Annotated[dict[Name, DataReport], Field(max_length=256)]
    held: Annotated[bytes, Field(max_length=KEY_BYTES * MAX_HELD)] = b""

    @field_validator("held")
    @classmethod
    def _whole_names(cls, held: bytes) -> bytes:
        if len(held) % KEY_BYTES:
            raise ValueError(f"{len(held)} bytes are no list of {KEY_BYTES} bytes each")
        return held


class EvaluationReport(WireModel):
    """Metrics of the model version that a `Work` brought."""

    type: Literal["evaluation"] = "evaluation"
    round: Round
    version: Round
    tasks: Annotated[dict[Name, TaskEvaluation], Field(max_length=256)]


class UpdateHeader(WireModel):
    """The announcement of an update; chunks of its tensors follow on `stream`.

    Attributes:
        run_id: the run it belongs to.
        round: the round it answers.
        version: the model version the deltas start from.
        plan: digest of the sharing plan the client worked under.
        base: from the work: which values the deltas start from; empty where the client does not say.
        stream: id of the chunk stream, chosen by the client, new for each attempt.
        tasks: per task what was done.
        tensors: one header per trained slot: deltas, trained value minus received value.
    """

    type: Literal["update"] = "update"
    run_id: Name
    round: Round
    version: Round
    plan: Digest
    base: Digest | Literal[""] = ""
    stream: U32
    tasks: Annotated[dict[Name, TaskContribution], Field(max_length=256)]
    tensors: Items[TensorHeader]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _require_unique_slots(self.tensors)
        if any(tensor.held for tensor in self.tensors):
            raise ValueError("an update brings all its tensors, none is held")
        return self

    @property
    def digest(self) -> str:
        """32 hex digits that are equal for a resend of the same update (stream, loss and seconds left out)."""
        content = [
            self.run_id,
            self.round,
            self.version,
            self.plan,
            [[task, self.tasks[task].num_examples] for task in sorted(self.tasks)],
            [
                [tensor.slot, tensor.dtype, list(tensor.shape), tensor.encoding, tensor.rows, tensor.checksum]
                for tensor in self.tensors
            ],
        ]
        return hashlib.sha256(msgpack.packb(content)).hexdigest()[:32]


class Declined(WireModel):
    """The client can't do this round's work (out of memory, loss not finite); the round goes on without it."""

    type: Literal["declined"] = "declined"
    round: Round
    reason: Text


class Progress(WireModel):
    """How far local training is; for people, nothing depends on it."""

    type: Literal["progress"] = "progress"
    round: Round
    done_steps: Count
    total_steps: Count
    loss: Finite | None = None


class Heartbeat(WireModel):
    """Sent by either end when it has sent nothing else for the agreed time."""

    type: Literal["heartbeat"] = "heartbeat"
    sequence: Count


class Goodbye(WireModel):
    """The client leaves and won't come back by itself."""

    type: Literal["goodbye"] = "goodbye"
    reason: Text


class Welcome(WireModel):
    """The server's answer to `Hello`: all a client needs to load its data and build its model.

    Attributes:
        protocol: the version both speak from now on.
        run_id: the run; another id after a reconnect means that results of the old one are void.
        client_id: as in `Hello`.
        tasks: the tasks assigned.
        seed: the run's seed.
        target_rounds: how many rounds the run wants.
        heartbeat_s: send something at least this often, in seconds.
        silence_s: a peer silent for so long counts as dead.
        chunk_bytes: most bytes of data in one chunk, both ways.
        encoding_up: transfer encoding of updates.
        encoding_down: transfer encoding of models.
        specs: task to specification (`common.tasks.TaskSpec` as plain data).
        family: the model family as plain data.
        assets: files of the family; those not in `Hello.assets` follow as chunk streams, in this order.
    """

    type: Literal["welcome"] = "welcome"
    protocol: U32
    run_id: Name
    client_id: ClientId
    tasks: ShortItems[Name]
    seed: U64
    target_rounds: Round
    heartbeat_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    silence_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    chunk_bytes: Annotated[int, Field(ge=ALIGNMENT, le=2**30, multiple_of=ALIGNMENT)]
    encoding_up: Name = "raw"
    encoding_down: Name = "raw"
    specs: Annotated[dict[Name, Free], Field(max_length=256)]
    family: Free
    assets: ShortItems[Asset] = ()


class Work(WireModel):
    """One round's work for one client; chunks of the tensors that are not held follow on `stream`.

    Attributes:
        run_id: the run.
        round: the round, from 1; one more than `target_rounds` where only the last version is evaluated.
        version: the model version that comes with it.
        target_rounds: how many rounds the run wants.
        plan: digest of the sharing plan.
        slice: the client's slice (`common.plan.Slice.to_dict`).
        base: digest of the values that come with it (`base_digest`); goes back in the update.
        evaluate: report metrics of this version first.
        training: how to train (`common.training.TrainSettings` as plain data); None for evaluation only.
        evaluation_settings: the same settings for work that is evaluation only; None otherwise.
        counted: the newest round of which the server has taken an update of this client, 0 for none: what the client
            remembers of rounds after it never happened. None: it does not say.
        deadline_s: seconds after which the server stops waiting; None without a deadline.
        stream: id of the chunk stream.
        tensors: one header per slot of the slice, in slice order.
    """

    type: Literal["work"] = "work"
    run_id: Name
    round: Round
    version: Round
    target_rounds: Round
    plan: Digest
    slice: Free
    base: Digest | Literal[""] = ""
    evaluate: bool
    training: Free | None = None
    evaluation_settings: Free | None = None
    counted: Round | None = None
    deadline_s: Seconds | None = None
    stream: U32
    tensors: Items[TensorHeader]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        _require_unique_slots(self.tensors)
        return self


class UpdateAck(WireModel):
    """The update is durable at the server. `update` is the digest of its header."""

    type: Literal["update_ack"] = "update_ack"
    round: Round
    version: Round
    update: Digest
    duplicate: bool = False


class RoundClosed(WireModel):
    """Stop whatever you do for this round: it was closed without you, or abandoned."""

    type: Literal["round_closed"] = "round_closed"
    round: Round
    reason: Text


class Rejected(WireModel):
    """One update or message was refused; the connection lives on."""

    type: Literal["rejected"] = "rejected"
    code: Name
    reason: Text
    round: Round | None = None


class Refusal(WireModel):
    """The client is refused; the connection is closed after this."""

    type: Literal["refusal"] = "refusal"
    code: Name
    reason: Text


class Finished(WireModel):
    """The run is over: ``finished`` when it reached its target, otherwise why it could not."""

    type: Literal["finished"] = "finished"
    state: Name
    reason: Text
    rounds_completed: Round


class Chunk(WireModel):
    """A piece of the payload of one tensor (or asset) of a stream.

    Attributes:
        stream: the stream's id.
        tensor: index in the list of headers that announced the stream; 0 for an asset.
        offset: where `data` begins in the tensor's payload, in bytes.
        data: 1 to `Welcome.chunk_bytes` bytes, a multiple of 8 unless it ends the payload.
    """

    type: Literal["chunk"] = "chunk"
    stream: U32
    tensor: U32
    offset: U64
    # A view of the received frame on the hot path, so that a tensor's bytes are copied once only.
    data: bytes | InstanceOf[memoryview]


ClientMessage = (
    Hello | Ready | EvaluationReport | UpdateHeader | Declined | Progress | Heartbeat | Goodbye | Chunk
)  # fmt: skip
ServerMessage = (
    Welcome | Work | UpdateAck | RoundClosed | Rejected | Refusal | Finished | Heartbeat | Chunk
)  # fmt: skip
Message = ClientMessage | ServerMessage


def _type_name(model: type[Any]) -> str:
    return str(model.model_fields["type"].default)


CLIENT_TYPES: Final[Mapping[str, type[ClientMessage]]] = MappingProxyType(
    {_type_name(m): m for m in ClientMessage.__args__}
)
SERVER_TYPES: Final[Mapping[str, type[ServerMessage]]] = MappingProxyType(
    {_type_name(m): m for m in ServerMessage.__args__}
)
MESSAGE_TYPES: Final[Mapping[str, type[Message]]] = MappingProxyType({**CLIENT_TYPES, **SERVER_TYPES})
