"""A federation whose processes fail: it ends, nothing is left running, and the log's end is shown.

The programs are stand-ins that start at once: what is tested is how they are begun, watched and ended.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from common.errors import RunFailed
from experiments import processes
from experiments.processes import Organisation, run_federation

SERVER = """
import os, sys, time
folder = sys.argv[sys.argv.index("--run-dir") + 1]
os.mkdir(folder)
open(folder + "/pid", "w").write(str(os.getpid()))
print("ready url=http://127.0.0.1:8771 run_dir=" + folder, flush=True)
time.sleep(600)
"""
CLIENT = """
import sys
client, server = (sys.argv[sys.argv.index(name) + 1] for name in ("--client-id", "--server"))
sys.exit(f"no room for {client} at {server}")
"""


def programs(folder: Path, server: str, client: str) -> None:
    for name, source in (("server", server), ("client", client)):
        (folder / name).mkdir()
        (folder / name / "__main__.py").write_text(source)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_client_that_fails_ends_the_run_and_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, SERVER, CLIENT)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    with pytest.raises(
        RunFailed, match=r"org-00 ended with exit code 1:\nno room for org-00 at ws://127.0.0.1:8771/ws"
    ):
        run_federation({}, [Organisation("org-00", ["income"], tmp_path)], tmp_path)
    assert gone(int((tmp_path / "run" / "pid").read_text()))


def test_a_killed_client_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, SERVER, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    with pytest.raises(RunFailed, match=r"org-00 was killed by SIGKILL \(was there no memory left\?\)"):
        run_federation({}, [Organisation("org-00", ["income"], tmp_path)], tmp_path)
    assert gone(int((tmp_path / "run" / "pid").read_text()))


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, "import sys; sys.exit('model: missing')", CLIENT)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    with pytest.raises(RunFailed, match="the server did not start:\nmodel: missing"):
        run_federation({}, [Organisation("org-00", ["income"], tmp_path)], tmp_path)


def test_rounds_are_told_as_they_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = """
import os, sys
folder = sys.argv[sys.argv.index("--run-dir") + 1]
os.makedirs(folder + "/model")
for name in ("model/round-00000.safetensors", "model/round-00002.safetensors"):
    open(folder + "/" + name, "w").close()
open(folder + "/summary.json", "w").write("{}")
print("ready url=http://127.0.0.1:8771 run_dir=" + folder, flush=True)
sys.stdin.read()
"""
    programs(tmp_path, server, "")
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    with caplog.at_level(logging.INFO, logger="fedmtl.experiments"):
        assert run_federation({}, [Organisation("org-00", ["income"], tmp_path)], tmp_path) == {}
    assert [line for line in caplog.messages if line.startswith("round")] == ["round 2 is done"]
