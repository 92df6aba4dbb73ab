"""docs/protocol.md and the code say the same, down to the bytes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgpack
import numpy as np
import pytest

from common.messages import (
    CLIENT_TYPES,
    ITEM_BYTES,
    MESSAGE_TYPES,
    PROTOCOL_VERSION,
    Chunk,
    Heartbeat,
    TaskContribution,
    TensorHeader,
    UpdateHeader,
)
from common.tensors import encode_tensor
from common.wire import MAX_CONTROL_BYTES, MAX_ITEMS, chunk_frame, decode_frame, encode_frame

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()
EXAMPLE = np.zeros((5, 2), np.float32)
EXAMPLE[1], EXAMPLE[3] = (1, -2), (0.5, 0)


def example(name: str) -> bytes:
    [text] = re.findall(rf"```hex {name}\n(.*?)```", DOCUMENT, re.DOTALL)
    return bytes.fromhex(text)


def fields(section: str) -> set[str]:
    """First column of the first table after a text."""
    table = DOCUMENT.split(section, 1)[1].split("| --- |", 1)[1].split("\n\n", 1)[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_it_is_the_version_of_the_code() -> None:
    assert DOCUMENT.startswith(f"# The fedmtl wire protocol, version {PROTOCOL_VERSION}\n")
    assert f"{MAX_CONTROL_BYTES >> 20} MiB" in DOCUMENT
    assert f"{MAX_ITEMS:,} entries" in DOCUMENT


@pytest.mark.parametrize("name", sorted(MESSAGE_TYPES))
def test_every_field_of_every_message_is_described(name: str) -> None:
    assert fields(f"#### `{name}`\n") == MESSAGE_TYPES[name].model_fields.keys() - {"type"}


def test_every_message_is_listed_under_its_direction() -> None:
    sent = DOCUMENT.split("### From client to server")[1]
    upward, rest = sent.split("### From server to client")
    downward, both = rest.split("### Both ways")[0], rest.split("### Both ways")[1].split("## 5.")[0]
    named = {part: set(re.findall(r"#### `(\w+)`", part)) for part in (upward, downward, both)}
    assert named[both] == {"heartbeat", "chunk"}
    assert named[upward] | named[both] == CLIENT_TYPES.keys()
    assert named[upward] | named[downward] | named[both] == MESSAGE_TYPES.keys()


def test_the_tensor_header_is_described() -> None:
    assert fields("A **tensor header**") == TensorHeader.model_fields.keys()
    assert " ".join(ITEM_BYTES) in DOCUMENT
    assert ", ".join(str(size) for size in ITEM_BYTES.values()) in DOCUMENT


def test_the_frame_examples_hold() -> None:
    heartbeat = Heartbeat(sequence=5)
    assert encode_frame(heartbeat) == example("heartbeat")
    assert decode_frame(example("heartbeat")) == heartbeat
    assert chunk_frame(1, 0, 0, example("rows")) == example("chunk")
    assert decode_frame(example("chunk")) == Chunk(stream=1, tensor=0, offset=0, data=example("rows"))
    assert example("chunk").index(example("rows")) == 64


def test_the_tensor_examples_hold() -> None:
    for allow_rows, name in [(True, "rows"), (False, "raw")]:
        tensor = encode_tensor("embedding@sst2", EXAMPLE, allow_rows=allow_rows)
        assert tensor.header.encoding == name
        assert b"".join(tensor.parts) == example(name)
        assert f"`nbytes` {tensor.header.nbytes}" in DOCUMENT
        assert f"`checksum` {tensor.header.checksum}" in DOCUMENT


def test_the_digest_example_holds() -> None:
    header = encode_tensor("embedding@sst2", EXAMPLE, allow_rows=True).header
    contribution = TaskContribution(num_examples=640, num_steps=20, loss=0.5, seconds=1.5)
    update = UpdateHeader(
        run_id="run-1", round=3, version=2, plan="0123456789abcdef", stream=1,
        tasks={"sst2": contribution}, tensors=(header,),
    )  # fmt: skip
    assert msgpack.unpackb(example("digest-content"))[:4] == ["run-1", 3, 2, "0123456789abcdef"]
    assert hashlib.sha256(example("digest-content")).hexdigest()[:32] == update.digest
    assert f"`{update.digest}`" in DOCUMENT


def test_every_error_the_code_names_is_described() -> None:
    described = fields("## 8. Errors")
    raised: set[str] = set()
    for folder in ("common", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            if "families" not in path.parts:  # those errors stay on one end
                raised |= set(re.findall(r'(?:ProtocolError|UpdateRejected)\(\s*"(\w+)"', path.read_text()))
    assert raised <= described
    assert {"malformed", "checksum", "non_finite"} <= raised
