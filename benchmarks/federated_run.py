"""One federation of real processes: ``python -m server`` and ``python -m client``, from start to summary.json."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent


def federate(
    config: Path, overrides: Sequence[str], clients: Mapping[str, Sequence[str]], data: Path, threads: int = 1
) -> dict[str, Any]:
    """Run a server and its clients to the end.

    Args:
        config: the server's configuration.
        overrides: ``key.path=value``, as for ``--set``.
        clients: client id to its tasks.
        data: folder of the clients' data.
        threads: CPU threads of each client.

    Returns:
        what summary.json holds.

    Raises:
        SystemExit: a process failed; with the end of their log.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "server", "--config", str(config), "--run-dir", str(run_dir)]
        command += [word for value in (*overrides, "server.port=0") for word in ("--set", value)]
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
            processes = [server]
            try:
                assert server.stdout is not None
                ready = server.stdout.readline()
                if not ready.startswith("ready "):
                    raise SystemExit("the server did not start\n" + (Path(folder) / "log").read_text()[-4000:])
                url = ready.split("url=http")[1].split()[0]
                for client_id, tasks in clients.items():
                    words = ["-m", "client", "--client-id", client_id, "--tasks", *tasks, "--threads", str(threads)]
                    words += ["--server", f"ws{url}/ws", "--data", str(data), "--state-dir", folder]
                    processes.append(subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=log, text=True))
                codes = [process.wait() for process in reversed(processes)]
            finally:
                for process in processes:
                    if process.poll() is None:
                        process.terminate()
                    process.wait()
        if any(codes):
            raise SystemExit(f"exit codes {codes}\n" + (Path(folder) / "log").read_text()[-4000:])
        summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
        return summary


def metrics(row: Mapping[str, float]) -> dict[str, float]:
    """One task's metrics of a summary, without what is no metric."""
    return {name: value for name, value in row.items() if name not in ("loss", "examples", "clients")}
