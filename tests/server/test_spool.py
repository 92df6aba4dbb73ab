from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common import failpoints
from common.durable import Disk
from common.messages import Chunk, UpdateHeader
from common.stream import StreamReceiver, chunk_frames
from common.torch_tensors import encode
from common.wire import decode_frame
from server.spool import Spool, SpooledUpdate, SpoolError, SpoolWriter, round_folder

EMBEDDING = torch.zeros(200, 6)
EMBEDDING[[0, 17, 199]] = torch.arange(18.0).view(3, 6) - 4
TENSORS: dict[str, Tensor] = {
    "embedding@a": EMBEDDING,
    "dense@a": torch.arange(1000.0),
    "half@a": torch.arange(10).to(torch.bfloat16),
    "scale@a": torch.tensor(3.5),
    "none@a": torch.zeros(0, 4),
}
ENCODED = [encode(slot, tensor, allow_rows=True) for slot, tensor in TENSORS.items()]


def header(round_number: int = 7) -> UpdateHeader:
    return UpdateHeader(
        run_id="run",
        round=round_number,
        version=round_number - 1,
        plan="ab",
        stream=3,
        tasks={},
        tensors=tuple(tensor.header for tensor in ENCODED),
    )


def fill(writer: SpoolWriter, of: UpdateHeader) -> None:
    receiver = StreamReceiver(of.stream, of.tensors, writer)
    for frame in chunk_frames(of.stream, ENCODED, 256):
        chunk = decode_frame(frame)
        assert isinstance(chunk, Chunk)
        receiver.accept(chunk)
    assert receiver.complete


def spooled(directory: Path, client_id: str = "c1", round_number: int = 7) -> SpooledUpdate:
    writer = SpoolWriter(directory, header(round_number), client_id)
    fill(writer, header(round_number))
    return writer.commit()


def assert_deltas(update: SpooledUpdate) -> None:
    update.open()
    for slot, tensor in TENSORS.items():
        delta = update.delta(slot)
        assert delta.shape == tuple(tensor.shape)
        for start, stop in [(0, tensor.numel()), (tensor.numel() // 3, tensor.numel() // 2)]:
            out = torch.full((stop - start,), 9.0, dtype=torch.float64)
            delta.read(start, out)
            expected = tensor.reshape(-1)[start:stop].double()
            assert torch.equal(out, expected)
            accumulator = torch.ones_like(expected)
            delta.add_to(accumulator, start, 2.0)
            assert torch.equal(accumulator, 1 + 2 * expected)
    update.close()


def test_a_committed_update_can_be_read_now_and_after_a_restart(tmp_path: Path) -> None:
    update = spooled(tmp_path)
    assert_deltas(update)
    [loaded] = Spool(tmp_path).load(7, verify=True)
    assert (loaded.client_id, loaded.header) == ("c1", header())
    assert_deltas(loaded)


def test_only_committed_updates_of_the_round_are_loaded_by_client_id(tmp_path: Path) -> None:
    for client_id in ("b.update", "c", "a"):
        spooled(tmp_path, client_id)
    spooled(tmp_path, "other_round", 8)
    fill(SpoolWriter(tmp_path, header(), "interrupted"), header())
    abandoned = SpoolWriter(tmp_path, header(), "abandoned")
    abandoned.abandon()
    abandoned.abandon()
    spool = Spool(tmp_path)
    assert [update.client_id for update in spool.load(7)] == ["a", "b.update", "c"]
    assert sorted(path.name for path in round_folder(tmp_path, 7).iterdir()) == [
        "a.update", "b.update.update", "c.update",
    ]  # fmt: skip
    assert spool.load(9) == []


def test_a_resent_update_replaces_the_first(tmp_path: Path) -> None:
    first = SpoolWriter(tmp_path, header(), "c1")
    spooled(tmp_path)
    fill(first, header())
    assert_deltas(first.commit())
    assert len(Spool(tmp_path).load(7)) == 1


def test_commit_is_durable_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after the rename must find the bytes: fsync of the file, rename, fsync of the folder."""
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    writer = SpoolWriter(tmp_path, header(), "c1")
    fill(writer, header())
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    writer.commit()
    assert steps == ["fsync file", "rename", "fsync folder"]


def test_a_commit_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    writer = SpoolWriter(tmp_path, header(), "c1")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        writer.commit()
    assert list(round_folder(tmp_path, 7).iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_torn_or_altered_file_is_dropped(tmp_path: Path, data: st.DataObject) -> None:
    path = spooled(tmp_path).path
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        # Bytes between payloads are padding that nobody reads.
        payload = content.index(b"".join(ENCODED[1].parts))
        header_end = 16 + int.from_bytes(content[8:12], "little")
        used = [*range(8), *range(16, header_end), payload, payload + ENCODED[1].header.nbytes - 1]
        content[data.draw(st.sampled_from(used))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert Spool(tmp_path).load(7, verify=True) == []
    assert not path.exists()


def test_a_file_cut_short_is_dropped_without_reading_its_payloads(tmp_path: Path) -> None:
    path = spooled(tmp_path).path
    os.truncate(path, path.stat().st_size - 1)
    assert Spool(tmp_path).load(7) == []


def test_nothing_is_written_after_an_update_was_abandoned(tmp_path: Path) -> None:
    """Its descriptor may belong to another file by then."""
    writer = SpoolWriter(tmp_path, header(), "c1")
    writer.abandon()
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer.write(0, 0, memoryview(b"12345678"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer.commit()
    assert Spool(tmp_path).load(7) == []


def test_a_file_of_a_later_round_is_dropped(tmp_path: Path) -> None:
    path = spooled(tmp_path, "c1", 8).path
    target = round_folder(tmp_path, 7)
    target.mkdir()
    path.rename(target / path.name)
    assert Spool(tmp_path).load(7) == []
    assert not path.exists()


def test_a_late_update_counts_in_the_round_it_is_committed_for(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, header(5), "late")
    fill(writer, header(5))
    spool = Spool(tmp_path)
    spool.discard(7)  # its round is over while it arrives
    update = writer.commit(8)
    assert update.path.parent == round_folder(tmp_path, 8)
    assert_deltas(update)
    spool.discard(7)
    assert [path.name for path in tmp_path.iterdir()] == ["round-00008"]
    [loaded] = Spool(tmp_path).load(8, verify=True)
    assert (loaded.client_id, loaded.header.round) == ("late", 5)


def test_without_fsync_nothing_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_descriptor: int) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "fsync", never)
    writer = SpoolWriter(tmp_path, header(), "c1", Disk(fsync=False))
    fill(writer, header())
    update = writer.commit()
    assert_deltas(update)
    Spool(tmp_path, Disk(fsync=False)).drop(update)


@pytest.mark.parametrize("point", ["spool.written", "spool.synced"])
def test_a_disk_that_is_full_before_the_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setenv(failpoints.WHILE_VARIABLE, str(tmp_path))
    failpoints.arm(f"{point}=enospc")
    try:
        with pytest.raises(OSError, match="No space"):
            spooled(tmp_path)
        assert list(round_folder(tmp_path, 7).iterdir()) == []
    finally:
        failpoints.arm("")
    spooled(tmp_path)


def test_a_restart_removes_what_was_on_its_way_into_any_round(tmp_path: Path) -> None:
    for round_number in (5, 7):
        fill(SpoolWriter(tmp_path, header(round_number), "c1"), header(round_number))
    Spool(tmp_path).load(7)
    assert list(tmp_path.rglob("*.partial")) == []


def test_discard_removes_the_rounds_up_to_one(tmp_path: Path) -> None:
    for round_number in (1, 2, 3):
        spooled(tmp_path, "c1", round_number)
    spool = Spool(tmp_path)
    (tmp_path / "notes").mkdir()
    spool.discard(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "round-00003"]
    spool.discard(2)


def test_what_was_dropped_does_not_come_back_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, synced = spooled(tmp_path), list[str]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    Spool(tmp_path).drop(update)
    assert synced == [str(round_folder(tmp_path, 7))]


def test_drop_removes_one_update(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    kept, dropped = spooled(tmp_path, "kept"), spooled(tmp_path, "dropped")
    spool.drop(dropped)
    spool.drop(dropped)
    assert [update.client_id for update in spool.load(7)] == [kept.client_id]


def test_deltas_need_an_open_file_and_a_slot_of_the_update(tmp_path: Path) -> None:
    update = spooled(tmp_path)
    delta = update.delta("dense@a")
    with pytest.raises(SpoolError, match="not open"):
        delta.read(0, torch.zeros(4))
    with pytest.raises(KeyError):
        update.delta("other@a")
    update.open()
    update.open()
    update.path.write_bytes(b"")
    with pytest.raises(SpoolError, match="ends early"):
        delta.read(0, torch.zeros(4))
    update.close()
    update.close()


def test_an_update_spooled_for_a_later_round_waits_there(tmp_path: Path) -> None:
    """It came while round 8 was being folded: it counts in round 9, when that is what it turns out to be."""
    writer = SpoolWriter(tmp_path, header(7), "late")
    fill(writer, header(7))
    update = writer.commit(9)
    spool = Spool(tmp_path)
    assert spool.load(8) == []
    assert [found.client_id for found in spool.load(9, verify=True)] == ["late"]
    assert_deltas(update)


def test_a_moved_update_counts_where_it_was_moved_to(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    update = spooled(tmp_path)
    moved = spool.move(update, 9)
    assert moved.path == round_folder(tmp_path, 9) / "c1.update"
    assert (moved.client_id, moved.header) == ("c1", header())
    assert_deltas(moved)
    assert spool.load(7) == []
    assert len(spool.load(9, verify=True)) == 1


def test_a_move_bears_being_done_twice(tmp_path: Path) -> None:
    """The first time it may have found no room after the rename."""
    spool = Spool(tmp_path)
    update = spooled(tmp_path)
    spool.move(update, 9)
    assert_deltas(spool.move(update, 9))
    assert len(spool.load(9)) == 1


def test_a_move_to_where_it_is_changes_nothing(tmp_path: Path) -> None:
    update = spooled(tmp_path)
    assert_deltas(Spool(tmp_path).move(update, 7))


def test_a_move_replaces_what_the_same_client_has_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spooled(tmp_path, "c1", 9)
    moved = spool.move(spooled(tmp_path, "c1", 7), 9)
    [found] = spool.load(9)
    assert found.header.round == moved.header.round == 7


def test_a_move_is_durable_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, steps = spooled(tmp_path), list[str]()
    real_replace = Path.replace

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(Path, "replace", replace)
    Spool(tmp_path).move(update, 9)
    assert steps == [str(tmp_path), "rename", str(round_folder(tmp_path, 9))]


def test_an_update_that_is_gone_cannot_be_moved(tmp_path: Path) -> None:
    update = spooled(tmp_path)
    update.path.unlink()
    with pytest.raises(SpoolError):
        Spool(tmp_path).move(update, 9)


def test_what_was_trained_on_a_version_that_is_made_anew_is_discarded(tmp_path: Path) -> None:
    for round_number in (6, 7, 8, 100_000):
        spooled(tmp_path, "c1", round_number)
    fill(SpoolWriter(tmp_path, header(9), "on-its-way"), header(9))
    (tmp_path / "notes").mkdir()
    (tmp_path / "round-7").mkdir()  # no name of ours
    spool = Spool(tmp_path)
    for _ in range(2):
        spool.discard_after(7)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "round-00006", "round-00007", "round-7"]
    assert len(spool.load(7, verify=True)) == 1
