"""Finished updates on disk: found for the same work only, whole or not at all, and gone when of no use."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.job import announcement
from client.kept_update import Assignment, KeptUpdates, circumstances, default_state_dir
from client.workload import TrainedUpdate
from common import failpoints
from common.errors import ConfigError
from common.messages import DataReport, GateReport, TaskContribution, TensorHeader, Welcome, Work
from common.tensors import encode_tensor

UPDATE = TrainedUpdate(
    {
        "mood": TaskContribution(
            num_examples=5,
            num_steps=1,
            loss=0.5,
            seconds=0.1,
            gates={"gate": GateReport(experts=("expert.0", "expert.1"), mass=(1.25, 3.75), entropy=0.5)},
        )
    },
    [
        encode_tensor("body", np.arange(40, dtype=np.float32)),
        encode_tensor("empty", np.zeros(0, np.float32)),
        encode_tensor("head", np.ones((3, 5), np.float32)),
    ],
)


def received(checksum: int = 1) -> tuple[TensorHeader, ...]:
    return (TensorHeader(slot="body", dtype="float32", shape=(40,), nbytes=160, checksum=checksum),)


def work(round_id: int = 3, **changes: Any) -> Work:  # noqa: ANN401  # fields of `Work`
    fields: dict[str, Any] = {
        "run_id": "run",
        "round": round_id,
        "version": round_id - 1,
        "target_rounds": 9,
        "plan": "ab",
        "slice": {"tasks": ["mood"], "slots": []},
        "evaluate": True,
        "training": {"rate": 0.1},
        "stream": 1,
        "tensors": received(),
    }
    return Work(**fields | changes)


def asked(round_id: int = 3, circumstances: str = "x", **changes: Any) -> Assignment:  # noqa: ANN401  # as above
    return Assignment.of(work(round_id, **changes), circumstances)


def keep(kept: KeptUpdates, assignment: Assignment) -> bool:
    of = work(assignment.round, run_id=assignment.run_id, version=assignment.version, plan=assignment.plan)
    return kept.keep(assignment, announcement(of, UPDATE, 0), UPDATE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


@pytest.fixture
def kept(tmp_path: Path) -> Any:  # noqa: ANN401  # an iterator of it
    store = KeptUpdates(tmp_path, "c1")
    yield store
    store.close()


def test_another_process_finds_what_one_has_kept(tmp_path: Path, kept: KeptUpdates) -> None:
    assert kept.find(asked()) is None
    assert keep(kept, asked())
    kept.close()
    found = KeptUpdates(tmp_path, "c1").find(asked())
    assert found is not None
    assert found.tasks == UPDATE.tasks
    assert [tensor.header for tensor in found.tensors] == [tensor.header for tensor in UPDATE.tensors]
    assert [b"".join(t.parts) for t in found.tensors] == [b"".join(t.parts) for t in UPDATE.tensors]
    kept.forget(asked())
    kept.forget(asked())
    assert kept.find(asked()) is None
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "other",
    [
        {"round_id": 4},
        {"run_id": "another"},
        {"version": 1},
        {"plan": "cd"},
        {"training": {"rate": 0.2}},
        {"target_rounds": 10},
        {"slice": {"tasks": ["topic"], "slots": []}},
        {"tensors": received(checksum=2)},
        {"circumstances": "y"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_work_does_not_get_it(kept: KeptUpdates, other: Mapping[str, Any]) -> None:
    keep(kept, asked())
    assert kept.find(asked(**other)) is None
    assert kept.find(asked(stream=7, evaluate=False, deadline_s=3.0)) is not None


def test_circumstances_are_all_that_decides_an_update() -> None:
    fields: dict[str, Any] = {
        "protocol": 1, "run_id": "run", "client_id": "c1", "tasks": ("mood",), "seed": 1, "target_rounds": 2,
        "heartbeat_s": 1.0, "silence_s": 10.0, "chunk_bytes": 4096, "specs": {"mood": {"a": 1}}, "family": {"b": 2},
    }  # fmt: skip
    loaded = {"mood": DataReport(train=5, validation=5, source="rows.csv")}

    def digest(loaded: Mapping[str, DataReport] = loaded, sync: str = "slice", **changes: Any) -> str:  # noqa: ANN401
        return circumstances(Welcome(**fields | changes), loaded, sync)

    digests = [
        digest(),
        digest(client_id="c2"),
        digest(seed=2),
        digest(tasks=("mood", "topic")),
        digest(specs={"mood": {"a": 2}}),
        digest(family={"b": 3}),
        digest({"mood": DataReport(train=6, validation=5, source="rows.csv")}),
        digest({"mood": DataReport(train=5, validation=5, source="other.csv")}),
        digest(sync="full"),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(heartbeat_s=2.0, chunk_bytes=8192) == digest()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_logged_and_removed(
    tmp_path: Path, kept: KeptUpdates, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    caplog.clear()
    keep(kept, asked())
    [path] = (path for path in tmp_path.rglob("*.update"))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[-1 - data.draw(st.integers(0, UPDATE.tensors[2].header.nbytes - 1))] ^= 1
    path.write_bytes(content)
    assert kept.find(asked()) is None
    assert "a kept update is of no use, round 3 is trained again" in caplog.text
    assert not path.exists()


def test_a_file_under_another_name_is_not_believed(tmp_path: Path, kept: KeptUpdates) -> None:
    keep(kept, asked())
    [path] = (path for path in tmp_path.rglob("*.update"))
    other = asked(4)
    path.rename(path.with_name(f"round-00004-{other.digest}.update"))
    assert kept.find(other) is None
    assert names(tmp_path) == []


def test_older_rounds_other_work_and_other_runs_are_pruned(tmp_path: Path, kept: KeptUpdates) -> None:
    for assignment in (asked(2), asked(3), asked(3, "other data"), asked(4), asked(3, run_id="old")):
        keep(kept, assignment)
    (tmp_path / "c1" / "run" / "round-00003-x.update.0000.partial").write_bytes(b"of a process that died")
    other_client = KeptUpdates(tmp_path, "c2")
    keep(other_client, asked())
    kept.prune("run", 3, asked(3))
    assert names(tmp_path / "c1") == sorted(f"round-0000{n}-{asked(n).digest}.update" for n in (3, 4))
    assert len(names(tmp_path / "c2")) == 1
    kept.prune("run", 5, None)
    assert names(tmp_path / "c1") == []
    kept.prune("a run of which nothing is there", 1, None)


def test_a_second_process_of_the_id_leaves_the_files_of_the_first_alone(tmp_path: Path, kept: KeptUpdates) -> None:
    keep(kept, asked(3, run_id="first"))
    second = KeptUpdates(tmp_path, "c1")
    keep(second, asked(3, run_id="second"))
    second.prune("second", 3, asked(3, run_id="second"))
    assert kept.find(asked(3, run_id="first")) is not None
    kept.close()
    kept.close()
    third = KeptUpdates(tmp_path, "c1")
    third.prune("second", 3, asked(3, run_id="second"))
    assert third.find(asked(3, run_id="first")) is None
    assert third.find(asked(3, run_id="second")) is not None


def test_a_run_that_is_over_leaves_nothing(tmp_path: Path, kept: KeptUpdates) -> None:
    keep(kept, asked())
    kept.forget_run("run")
    kept.forget_run("run")
    assert [path.name for path in (tmp_path / "c1").iterdir()] == [".lock"]


@pytest.mark.parametrize("run_id", ["..", "../../out", "/etc", ".lock", "a" * 256, "läuft", "a\x00b", "c/d"])
def test_a_run_id_from_the_wire_does_not_lead_out_of_the_folder(tmp_path: Path, run_id: str) -> None:
    store = KeptUpdates(tmp_path / "state", "..")
    assert keep(store, asked(run_id=run_id))
    assert store.find(asked(run_id=run_id)) is not None
    [client] = (tmp_path / "state").iterdir()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert len([path for path in client.iterdir() if path.is_dir()]) == 1


def test_it_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    store = KeptUpdates(tmp_path, "c1")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    keep(store, asked())
    assert steps == ["fsync folder", "fsync file", "rename", "fsync folder"]


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, kept: KeptUpdates, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv(failpoints.WHILE_VARIABLE, str(tmp_path))
    failpoints.arm("client.keeping=enospc")
    try:
        assert not keep(kept, asked())
    finally:
        failpoints.arm("")
    assert "round 3: the finished update could not be kept" in caplog.text
    assert "No space left" in caplog.text
    assert names(tmp_path) == []
    assert keep(kept, asked())


def test_a_folder_that_went_away_is_said(tmp_path: Path, kept: KeptUpdates, caplog: pytest.LogCaptureFixture) -> None:
    """As with a disk that has become read-only: no file can be made."""
    (tmp_path / "c1" / "run").write_text("not a folder")
    assert not keep(kept, asked())
    assert "could not be kept" in caplog.text
    assert kept.find(asked()) is None
    kept.forget(asked())
    kept.prune("run", 3, None)
    kept.forget_run("run")


def test_a_state_folder_that_cannot_be_made_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/state/c1 can't be made .*--state-dir PATH or FEDMTL_STATE_DIR"):
        KeptUpdates(tmp_path / "file" / "state", "c1")


def test_the_default_follows_the_xdg_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_state_dir() == tmp_path / ".local" / "state" / "fedmtl"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_state_dir() == tmp_path / ".local" / "state" / "fedmtl"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_state_dir() == tmp_path / "xdg" / "fedmtl"
