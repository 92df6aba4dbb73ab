"""One federation of real processes on this machine: ``python -m server`` and ``python -m client``, begun and ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from common.errors import RunFailed

log = logging.getLogger("fedmtl.experiments")
#: The programs are modules, found from here.
ROOT: Final = Path(__file__).resolve().parent.parent
#: Seconds between two looks at whether all processes still run.
WATCH_S: Final = 0.1
#: Seconds that a process which was told to end has for it.
PATIENCE_S: Final = 10.0
#: Characters of a log that a message shows.
TAIL: Final = 3000


@dataclass(frozen=True)
class Organisation:
    """One client.

    Attributes:
        client_id: its name in the run.
        tasks: what it has labels for.
        data: folder of its rows.
    """

    client_id: str
    tasks: Sequence[str]
    data: Path


def run_federation(
    config: Mapping[str, Any], organisations: Sequence[Organisation], folder: Path, threads: int = 1
) -> dict[str, Any]:
    """Run a server and its clients to the end. Whatever happens, none of them outlives this call.

    Args:
        config: the server's configuration; its port is chosen here.
        organisations: the clients.
        folder: for configuration, logs, what clients keep, and the run directory, ``run``.
        threads: CPU threads of each client.

    Returns:
        what summary.json holds.

    Raises:
        RunFailed: a process failed; with the end of its log.
    """
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    with contextlib.ExitStack() as stack:
        words = ["server", "--config", str(path), "--run-dir", str(folder / "run"), "--set", "server.port=0"]
        server = stack.enter_context(_program(words, folder / "server.log"))
        address = _address(server, folder / "server.log")
        processes = {"server": server}
        for one in organisations:
            words = ["client", "--client-id", one.client_id, "--tasks", *one.tasks, "--server", address]
            words += ["--data", str(one.data.absolute()), "--threads", str(threads)]
            words += ["--state-dir", str(folder / "state"), "--cache-dir", "off"]
            processes[one.client_id] = stack.enter_context(_program(words, folder / f"{one.client_id}.log"))
        log.info("a server and %d clients are running; logs are in %s", len(organisations), folder)
        _wait(processes, folder)
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return summary


@contextlib.contextmanager
def _program(words: Sequence[str], errors: Path) -> Iterator[subprocess.Popen[str]]:
    """``python -m WORDS``, ended at the latest when the block is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with errors.open("w") as log_file:
        process = subprocess.Popen(  # noqa: S603  # our own programs
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if words[0] == "server" else subprocess.DEVNULL,
            stderr=log_file,
            text=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _address(server: subprocess.Popen[str], errors: Path) -> str:
    """Where clients connect, once the server is ready."""
    assert server.stdout is not None
    ready = server.stdout.readline()
    if not ready.startswith("ready "):
        raise RunFailed(f"the server did not start:\n{_tail(errors)}")
    url = ready.removeprefix("ready url=").partition(" run_dir=")[0].strip()
    return url.replace("http", "ws", 1) + "/ws"


def _wait(processes: Mapping[str, subprocess.Popen[str]], folder: Path) -> None:
    """Until all have ended well; one that fails would leave the others waiting for it."""
    running, rounds = dict(processes), 0
    while running:
        for name, process in processes.items():
            if (code := process.poll()) is None:
                continue
            if code:
                raise RunFailed(f"{name} {_end(code)}:\n{_tail(folder / f'{name}.log')}")
            running.pop(name, None)
        rounds = _told(folder / "run" / "model", rounds)
        time.sleep(WATCH_S if running else 0)


def _end(code: int) -> str:
    """How a process that failed ended, in words."""
    if code > 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (was there no memory left?)" if name == "SIGKILL" else "")


def _told(models: Path, known: int) -> int:
    """The newest round of which there is a model; it is logged if it was not known."""
    found = max((int(path.stem.removeprefix("round-")) for path in models.glob("round-*.safetensors")), default=0)
    if found > known:
        log.info("round %d is done", found)
    return max(found, known)


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-TAIL:]
