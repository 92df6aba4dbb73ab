"""A client's memory on disk: another process finds it whole, or says that it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.memory import ClientMemory, Memory, Remembered
from client.memory_folder import MemoryFolder, forget_all_but_memory, memory_folder
from common import failpoints
from common.errors import ConfigError


def memory(number: float) -> Memory:
    shared = torch.full((3, 2), number)
    return Memory({"one": shared, "the same": shared, "scalar": torch.tensor(number)}, {"weight": number / 3})


def same(one: Memory, other: Memory) -> bool:
    return (
        one.numbers == other.numbers
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


def opened(path: Path, client_id: str = "c") -> ClientMemory:
    return ClientMemory(MemoryFolder(path / "memory", "run", client_id))


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if file.is_file())


def test_another_process_goes_on_from_there(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert all(first.keep(number, memory(number)) for number in (1, 2, 3))
    assert names(tmp_path) == ["round-00002.safetensors", "round-00003.safetensors"]
    second = opened(tmp_path)
    assert same(second.latest(), memory(3))
    assert same(second.before(3), memory(2))
    loaded = second.latest().tensors
    assert loaded["one"] is loaded["the same"], "a tensor of several names is there once"
    # Killed after its training of round 3: it is done again from what was known before.
    second.keep(3, memory(7))
    assert same(opened(tmp_path).latest(), memory(7))
    assert same(opened(tmp_path).before(3), memory(2))


def test_nothing_to_remember_writes_nothing(tmp_path: Path) -> None:
    memory_ = opened(tmp_path)
    assert memory_.keep(1, Memory())
    assert names(tmp_path) == []


def test_without_a_folder_nothing_outlives_the_process() -> None:
    assert not ClientMemory().keep(1, memory(1))
    assert ClientMemory().keep(1, Memory())


def test_a_server_that_goes_back_further_than_is_remembered_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened(tmp_path)
    for number in (1, 2, 3):
        first.keep(number, memory(number))
    assert same(first.before(3), memory(2))
    assert not caplog.records
    for known in (first, opened(tmp_path)):
        assert same(known.before(2), memory(2)), "the oldest there is"
    assert "round 2 is done again" in caplog.text
    caplog.clear()
    first.keep(2, memory(9))
    first.before(2)
    assert "round 2 is done again" in caplog.text, "it can't be redone exactly after that either"


def test_the_first_round_is_done_again_from_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path).keep(4, memory(4))
    assert opened(tmp_path).before(4) == Memory()
    assert not caplog.records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_a_file_that_is_torn_or_altered_anywhere_ends_the_client_and_says_what_to_do(
    tmp_path: Path, data: st.DataObject
) -> None:
    opened(tmp_path).keep(1, memory(1))
    [path] = tmp_path.rglob("round-*.safetensors")
    whole = path.read_bytes()
    content = bytearray(whole)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    # JSON has spaces that mean nothing, so not every byte matters; then what is read is what was written.
    said = ""
    try:
        assert same(opened(tmp_path).latest(), memory(1))
    except ConfigError as error:
        said = str(error)
    assert not said or ("round-00001.safetensors" in said and "remove the file" in said)
    path.write_bytes(whole)


def test_an_altered_number_or_element_is_noticed(tmp_path: Path) -> None:
    opened(tmp_path).keep(1, memory(3))
    [path] = tmp_path.rglob("round-*.safetensors")
    whole = path.read_bytes()
    assert whole.count(b'\\"weight\\": 1.0') == 1
    for altered in (whole.replace(b'\\"weight\\": 1.0', b'\\"weight\\": 2.0'), whole[:-1] + b"\x7f"):
        path.write_bytes(altered)
        with pytest.raises(ConfigError, match=r"damaged or not its own .*(digest|checksum)"):
            opened(tmp_path)


def test_another_clients_or_runs_memory_is_not_believed(tmp_path: Path) -> None:
    opened(tmp_path).keep(1, memory(1))
    with pytest.raises(ConfigError, match="it is of"):
        opened(tmp_path, "another")
    [path] = tmp_path.rglob("round-*.safetensors")
    path.rename(path.with_name("round-00002.safetensors"))
    with pytest.raises(ConfigError, match="it is of"):
        opened(tmp_path)


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    opened(tmp_path).keep(1, memory(1))
    (tmp_path / "memory" / "round-00002.safetensors.00ff.partial").write_bytes(b"half")
    assert same(opened(tmp_path).latest(), memory(1))
    assert names(tmp_path) == ["round-00001.safetensors"]


def test_it_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    known = opened(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    known.keep(1, memory(1))
    assert steps == ["fsync folder", "fsync file", "rename", "fsync folder"]


def test_a_full_disk_is_said_and_made_up_for_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.WHILE_VARIABLE, str(tmp_path))
    known = opened(tmp_path)
    assert known.keep(1, memory(1))
    failpoints.arm("client.remembering=enospc")
    try:
        assert not known.keep(2, memory(2))
    finally:
        failpoints.arm("")
    assert "round 2: what this client remembers of it could not be kept" in caplog.text
    assert names(tmp_path) == ["round-00001.safetensors"]
    assert same(known.latest(), memory(2))
    assert known.keep(3, memory(3))
    assert same(opened(tmp_path).before(3), memory(2)), "without it round 3 could not be done again"


def test_other_things_kept_for_a_run_may_go_and_the_memory_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    MemoryFolder(memory_folder(run), "run", "c").write(1, Remembered(memory(1)))
    (run / "round-00001-x.update").write_bytes(b"")
    forget_all_but_memory(run)
    assert names(run) == ["round-00001.safetensors"]
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "round-00001-x.update").write_bytes(b"")
    forget_all_but_memory(plain)
    assert not plain.exists()
