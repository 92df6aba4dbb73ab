"""Torn and altered files of a run directory: the last good state is used, the log says so, the model is the same."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.programs import Programs
from tests.faults.small_run import ROUNDS, config, finish, start_clients


def newest_version(run_dir: Path) -> Path:
    return max((run_dir / "model").glob("round-*.safetensors"))


def tear(path: Path) -> None:
    """Only its first half reached the disk."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """A bit in the middle changed."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 16
    path.write_bytes(content)


def spooled(run_dir: Path) -> Path:
    """An update of the newest round in the spool."""
    return max((run_dir / "spool").glob("round-*/*.update"))


def rubbish(path: Path) -> None:
    path.write_bytes(b"\x00" * 5000)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a torn version": (lambda run_dir: tear(newest_version(run_dir)), "going back to an older version"),
    "an altered version": (lambda run_dir: flip(newest_version(run_dir)), "going back to an older version"),
    "a version that is gone": (lambda run_dir: newest_version(run_dir).unlink(), "going back to an older version"),
    "a torn update": (lambda run_dir: tear(spooled(run_dir)), "dropped a spooled update"),
    "an altered update": (lambda run_dir: flip(spooled(run_dir)), "dropped a spooled update"),
    "a torn database": (lambda run_dir: tear(run_dir / "run.db"), "the run's database is damaged"),
    "a database of zeros": (lambda run_dir: rubbish(run_dir / "run.db"), "the run's database is damaged"),
    "a torn summary": (lambda run_dir: tear(run_dir / "summary.json"), "resuming from version"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_found_and_the_last_good_state_used(programs: Programs, right: str, what: str) -> None:
    damage, said = DAMAGE[what]
    server = programs.server(config(), failpoint="update.acknowledged=kill@8")
    clients = start_clients(programs, server)
    assert server.wait() == -signal.SIGKILL
    for part in ("-wal", "-shm"):  # as after a crash of the machine that lost the newest transactions
        if "database" in what:
            (server.run_dir / f"run.db{part}").unlink(missing_ok=True)
    damage(server.run_dir)
    port = server.url.rpartition(":")[2]
    again = programs.server(None, "--resume", "--set", f"server.port={port}")
    assert finish(again, clients) == right
    assert said in again.log()
    assert len(again.summary()["history"]) == ROUNDS + 1
    assert "Traceback" not in again.log()


@pytest.mark.parametrize("point", ["start.database_written", "start.database_made"])
def test_a_server_killed_while_it_replaces_a_damaged_database_begins_nothing_anew(
    programs: Programs, right: str, point: str
) -> None:
    server = programs.server(config(), failpoint="update.acknowledged=kill@8")
    clients = start_clients(programs, server)
    assert server.wait() == -signal.SIGKILL
    for part in ("", "-wal", "-shm"):
        rubbish(server.run_dir / f"run.db{part}")
    port = server.url.rpartition(":")[2]
    arguments = ("--resume", "--set", f"server.port={port}")
    second = programs.server(None, *arguments, ready=False, failpoint=f"{point}=kill")
    assert second.wait() == -signal.SIGKILL
    again = programs.server(None, *arguments)
    assert finish(again, clients) == right
    assert "resuming from version 2" in again.log()


def test_a_database_that_is_gone_costs_the_history_alone(programs: Programs, right: str) -> None:
    server = programs.server(config(), failpoint="update.acknowledged=kill@8")
    clients = start_clients(programs, server)
    assert server.wait() == -signal.SIGKILL
    for path in server.run_dir.glob("run.db*"):
        path.unlink()
    again = programs.server(None, "--resume", "--set", f"server.port={server.url.rpartition(':')[2]}")
    assert finish(again, clients) == right
    assert "resuming from version 2" in again.log()


def test_a_database_that_another_program_holds_is_not_taken_for_damaged(programs: Programs) -> None:
    """A backup, say. The server waits for it, and when that takes too long says so and changes nothing."""
    server = programs.server(config(), failpoint="update.acknowledged=kill@8")
    start_clients(programs, server)
    assert server.wait() == -signal.SIGKILL
    with closing(sqlite3.connect(server.run_dir / "run.db")) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        again = programs.server(None, "--resume", "--set", "server.port=0", ready=False)
        assert again.wait() == 2
        assert "nothing was changed" in again.log()
    assert list(server.run_dir.glob("run.db.damaged*")) == []


def test_a_run_without_one_whole_version_is_refused(programs: Programs) -> None:
    server = programs.server(config(), failpoint="update.acknowledged=kill@8")
    start_clients(programs, server)
    assert server.wait() == -signal.SIGKILL
    for path in (server.run_dir / "model").iterdir():
        tear(path)
    again = programs.server(None, "--resume", ready=False)
    assert again.wait() == 2
    assert "no committed version is whole" in again.log()
