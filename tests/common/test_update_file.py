"""One update in one file: what is read is what was written, or an error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.messages import Heartbeat, TaskContribution, UpdateHeader
from common.tensors import EncodedTensor, encode_tensor
from common.update_file import UpdateFile, UpdateFileError, UpdateFileWriter
from common.wire import encode_frame

TABLE = np.zeros((30, 5), np.float32)
TABLE[[2, 17]] = 1.5
TENSORS = [
    encode_tensor("table", TABLE, allow_rows=True),
    encode_tensor("body", np.arange(300, dtype=np.float32)),
    encode_tensor("scalar", np.array(2.5, np.float32)),
    encode_tensor("empty", np.zeros((0, 4), np.float32)),
]
HEADER = UpdateHeader(
    run_id="run",
    round=3,
    version=2,
    plan="ab",
    stream=0,
    tasks={"mood": TaskContribution(num_examples=5, num_steps=1, loss=0.25, seconds=0.1)},
    tensors=tuple(tensor.header for tensor in TENSORS),
)


def written(folder: Path, name: str = "one.update") -> Path:
    writer = UpdateFileWriter(folder / "one.partial", HEADER)
    for index, tensor in enumerate(TENSORS):
        offset = 0
        for part in tensor.parts:
            writer.write(index, offset, part)
            offset += part.nbytes
    writer.commit(folder / name)
    return folder / name


def content(tensors: list[EncodedTensor]) -> list[bytes]:
    return [b"".join(tensor.parts) for tensor in tensors]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    update = UpdateFile.load(written(tmp_path))
    assert update.header == HEADER
    update.verify()
    tensors = update.tensors()
    assert [tensor.header for tensor in tensors] == [tensor.header for tensor in TENSORS]
    assert content(tensors) == content(TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["one.update"]
    with pytest.raises(UpdateFileError, match="not open"):
        update.read(update.offset_of(1), np.zeros(4, np.uint8))


def test_steps_are_told_in_order(tmp_path: Path) -> None:
    steps: list[tuple[str, bool]] = []
    writer = UpdateFileWriter(tmp_path / "a.partial", HEADER)
    writer.commit(tmp_path / "a", lambda step: steps.append((step, (tmp_path / "a").exists())))
    assert steps == [("written", False), ("synced", False), ("renamed", True)]


def test_a_temporary_name_is_used_once(tmp_path: Path) -> None:
    first = UpdateFileWriter(tmp_path / "a.partial", HEADER)
    with pytest.raises(FileExistsError):
        UpdateFileWriter(tmp_path / "a.partial", HEADER)
    first.abandon()
    assert list(tmp_path.iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data())
def test_a_torn_or_altered_file_is_an_error(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path)
    altered = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del altered[data.draw(st.integers(0, len(altered) - 1)) :]
    else:
        payload = altered.index(b"".join(TENSORS[1].parts))
        header_end = 16 + int.from_bytes(altered[8:12], "little")
        used = [*range(12), *range(16, header_end), *range(payload, payload + TENSORS[1].header.nbytes)]
        altered[data.draw(st.sampled_from(used))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(altered)
    for read in (UpdateFile.verify, UpdateFile.tensors):
        with pytest.raises(UpdateFileError):
            read(UpdateFile.load(path))


def test_other_files_are_not_updates(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(UpdateFileError, match="can't be read"):
        UpdateFile.load(path)
    frame = encode_frame(Heartbeat(sequence=1))
    path.write_bytes(b"FMTLUPD\x01" + len(frame).to_bytes(4, "little") + bytes(4) + frame)
    with pytest.raises(UpdateFileError, match="heartbeat"):
        UpdateFile.load(path)
    path.write_bytes(os.urandom(7) + b"\x01" * 200)
    with pytest.raises(UpdateFileError, match="not an update file"):
        UpdateFile.load(path)


def test_a_file_that_went_away_is_an_error_of_ours(tmp_path: Path) -> None:
    update = UpdateFile.load(written(tmp_path))
    update.path.unlink()
    with pytest.raises(UpdateFileError, match="can't be read"):
        update.verify()
