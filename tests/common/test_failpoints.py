"""Failure points: off they do nothing; armed they do what is asked, where and when it is asked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.failpoints import (
    CLIENT_POINTS,
    MEMORY_POINTS,
    SERVER_POINTS,
    VARIABLE,
    WHILE_VARIABLE,
    arm,
    armed,
    failpoint,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """Nothing stays armed."""
    yield
    arm("")


def child(armed_with: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, armed by the environment."""
    return subprocess.run(
        [sys.executable, "-c", f"from common.failpoints import failpoint, armed\n{code}"],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, VARIABLE: armed_with}, timeout=60,
    )  # fmt: skip


def test_every_point_has_one_name_and_is_in_the_code_once() -> None:
    names = SERVER_POINTS + CLIENT_POINTS + MEMORY_POINTS
    assert len(set(names)) == len(names)
    code = "".join(p.read_text() for folder in ("server", "client", "common") for p in (ROOT / folder).rglob("*.py"))
    code = code.replace((ROOT / "common" / "failpoints.py").read_text(), "")
    for name in names:
        prefix, _, last = name.rpartition(".")
        # The spool names its three by the step they come after.
        assert f'"{name}"' in code or (prefix == "spool" and f'"{last}"' in code), f"{name} is nowhere"


@pytest.mark.parametrize("name", SERVER_POINTS + CLIENT_POINTS)
def test_unarmed_points_do_nothing(name: str) -> None:
    failpoint(name)
    other = next(point for point in SERVER_POINTS if point != name)
    arm(f"{other}=kill")
    failpoint(name)


def test_unarmed_points_cost_next_to_nothing() -> None:
    """A dictionary's truth, and not a look at the environment or the disk."""
    began = time.perf_counter()
    for _ in range(100_000):
        failpoint("spool.written")
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spool.wrote=kill", "no point 'spool.wrote'"),
        ("=kill", "no point ''"),
        ("kill", "no point 'kill'"),
        ("spool.written", "no action ''"),
        ("spool.written=", "no action ''"),
        ("spool.written=die", "spool.written: no action 'die'; there are kill, enospc and sleep:SECONDS"),
        ("spool.written=kill,commit.done=nap", "commit.done: no action 'nap'"),
        ("spool.written=kill@soon", "invalid literal"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        arm(text)


def test_a_process_with_a_misspelt_point_does_not_start() -> None:
    ended = child("spool.wrote=kill", "print('started')")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "no point 'spool.wrote'" in ended.stderr


def test_arming_replaces_what_was_armed() -> None:
    assert armed() == ""
    arm("spool.written=kill,commit.done=sleep:0.5@3")
    assert armed() == "spool.written=kill@1, commit.done=sleep:0.5@3"
    arm("client.kept=enospc")
    assert armed() == "client.kept=enospc@1"
    arm("")
    assert armed() == ""


def test_a_process_kills_itself_the_third_time_it_comes_by() -> None:
    code = "print(armed(), flush=True)\nfor n in range(5):\n failpoint('commit.done')\n print(n, flush=True)"
    ended = child("commit.done=kill@3", code)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == ["commit.done=kill@3", "0", "1"]


def test_it_sleeps_once_and_then_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    arm("commit.done=sleep:2.5@2")
    found = []
    for _ in range(4):
        failpoint("commit.done")
        found.append(len(slept))
    assert slept == [2.5]
    assert found == [0, 1, 1, 1]


def test_the_disk_is_full_from_then_on_while_a_file_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.touch()
    monkeypatch.setenv(WHILE_VARIABLE, str(full))
    arm("spool.written=enospc@2")
    failpoint("spool.written")
    for _ in range(3):
        with pytest.raises(OSError, match="No space left on device") as caught:
            failpoint("spool.written")
        assert caught.value.errno == errno.ENOSPC
        failpoint("spool.synced")  # elsewhere there is room
    full.unlink()
    failpoint("spool.written")
    full.touch()
    with pytest.raises(OSError, match="No space"):
        failpoint("spool.written")
