"""Starts that were once taken for what they are not: a full disk for damage, a run without its database for none."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from common import failpoints
from common.errors import ConfigError
from server import start
from server.lane import no_room
from server.run_directory import RunDirectory
from tests.server.test_start import finished_run, resumed, run, torn, version_path

__all__ = ["finished_run", "run"]


def holds_run(folder: Path) -> bool:
    directory = RunDirectory(folder, resume=True)
    directory.close()
    return directory.holds_run


def test_a_server_killed_while_the_database_is_begun_anew_leaves_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "run.db").write_bytes(b"not SQLite at all " * 500)
    monkeypatch.setenv(failpoints.WHILE_VARIABLE, str(run))
    failpoints.arm("start.database_written=enospc")  # stands for a kill there
    try:
        with pytest.raises(OSError, match="No space"), resumed(run):
            pass
    finally:
        failpoints.arm("")
    assert holds_run(run), "else `serve` begins from version 0 and writes over the versions"


def test_when_everything_is_damaged_the_second_resume_refuses_too(run: Path) -> None:
    (run / "run.db").write_bytes(b"not SQLite at all " * 500)
    for version in range(4):
        torn(version_path(run, version))
    with pytest.raises(ConfigError, match="nothing to resume from"), resumed(run):
        pass
    assert holds_run(run)


def test_a_healthy_database_on_a_full_disk_is_not_taken_for_a_damaged_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(start, "History", full)
    with pytest.raises((OSError, ConfigError, sqlite3.OperationalError)), resumed(run):
        pass
    assert (run / "run.db").exists()


def test_errors_of_sqlite3_itself_are_no_want_of_room() -> None:
    assert no_room(sqlite3.ProgrammingError("Cannot operate on a closed database.")) is None
