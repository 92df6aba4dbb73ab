"""A file that several tasks are labels of is parsed once, and gives what reading it for each would give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from common.data import held_tables
from common.data.config import FileFormat
from common.data.files import read_file
from common.data.held_tables import HELD, read_once, read_table
from common.data.tables import Table
from common.errors import DataError

PLAIN = FileFormat()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, as they are."""
    seen: list[str] = []

    def counted(path: Path, file_format: FileFormat, wanted: Sequence[str] | None) -> Table:
        seen.append(path.name)
        return read_file(path, file_format, wanted)

    monkeypatch.setattr(held_tables, "read_file", counted)
    return seen


def _write(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_within_it_a_file_is_read_once_and_after_it_anew(tmp_path: Path, reads: list[str]) -> None:
    path = _write(tmp_path, "t.csv", "a,b\n1,x\n")
    with read_once():
        assert dict(read_table(path, PLAIN, ["b"]).columns) == {"b": ["x"]}
        assert dict(read_table(path, PLAIN, ["a", "b"]).columns) == {"a": ["1"], "b": ["x"]}
        with pytest.raises(DataError, match=r"no column 'c'; the columns are 'a', 'b'"):
            read_table(path, PLAIN, ["c"])
        assert reads == ["t.csv"]
        read_table(path, FileFormat(strip=True), ["a"])
        assert len(reads) == 2, "written otherwise, it is another table"
    path.write_text("a,b\n2,y\n")
    for _ in range(2):
        assert dict(read_table(path, PLAIN, ["b"]).columns) == {"b": ["y"]}
    assert len(reads) == 4


def test_few_files_are_held_at_once(tmp_path: Path, reads: list[str]) -> None:
    paths = [_write(tmp_path, f"{i}.csv", "a\n1\n") for i in range(HELD + 1)]
    with read_once():
        for path in [*paths, paths[-1], paths[0]]:
            read_table(path, PLAIN, ["a"])
    assert reads == ["0.csv", "1.csv", "2.csv", "0.csv"]


def test_a_file_that_can_not_be_read_whole_gives_what_is_wanted(tmp_path: Path) -> None:
    twice = _write(tmp_path, "twice.csv", "a,b,b\n1,2,3\n")
    empty = _write(tmp_path, "empty.jsonl", "")
    with read_once():
        assert dict(read_table(twice, PLAIN, ["a"]).columns) == {"a": ["1"]}
        with pytest.raises(DataError, match="names \\['b'\\] more than once"):
            read_table(twice, PLAIN, ["b"])
        assert len(read_table(empty, PLAIN, ["a"])) == 0
