"""Files that survive a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.durable import DURABLE, Disk


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content in (b"old", b"new and longer", b""):
        DURABLE.replace(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    DURABLE.replace(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, f"no space left ({descriptor})")

    monkeypatch.setattr("common.durable.os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        DURABLE.replace(path, b"new")
    assert path.read_bytes() == b"old"


def test_without_fsync_nothing_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise AssertionError(f"fsync({descriptor})")

    monkeypatch.setattr("common.durable.os.fsync", fail)
    quick = Disk(fsync=False)
    quick.replace(tmp_path / "f", b"x")
    quick.sync_file(tmp_path / "f")
    quick.sync_folder(tmp_path)
    assert (tmp_path / "f").read_bytes() == b"x"
