"""``make demo``: one server and three client processes over real WebSockets, offline, to a printed table.

The data is synthetic and the encoder is trained from scratch, so the demo needs no network. It does what a person
would do in four terminals: start ``python -m server``, wait for its ready line, start three
``python -m client``, and read the run directory's summary.json at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parent.parent
TASKS: Final = ("sst2", "qqp", "stsb")
PRIMARY: Final = {"sst2": "accuracy", "qqp": "accuracy", "stsb": "pearson"}
CHANCE: Final = {"sst2": 0.5, "qqp": 0.5, "stsb": 0.0}


def start(words: list[str], log: IO[str], **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401  # for Popen
    """Start one of our modules as a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, text=True, **options)


def run(config: Path, run_dir: Path | None) -> tuple[Path, list[int]]:
    """Run the federation; returns the run directory and the exit codes, the server's last."""
    threads = str(max(1, (os.cpu_count() or 1) // len(TASKS)))
    with tempfile.TemporaryDirectory() as folder:
        logs = {name: (Path(folder) / f"{name}.log").open("w+") for name in ("server", *TASKS)}
        words = ["server", "--config", str(config), "--set", "server.port=0"]
        server = start(words + (["--run-dir", str(run_dir)] if run_dir else []), logs["server"], stdout=subprocess.PIPE)
        processes = [server]
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            if not ready.startswith("ready "):
                raise SystemExit(f"the server did not start:\n{_tail(logs['server'])}")
            print(ready.strip())
            # The folder may have blanks in its name; it comes last on the line.
            url, _, folder_of_run = ready.strip().removeprefix("ready url=").partition(" run_dir=")
            address = url.replace("http", "ws", 1) + "/ws"
            for task in TASKS:
                words = ["client", "--client-id", f"{task}_client", "--tasks", task, "--server", address]
                print("started python -m", " ".join(words))
                processes.append(start([*words, "--threads", threads, "--state-dir", folder], logs[task]))
            follow(logs["server"], processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit("\n".join(f"--- {name}\n{_tail(log)}" for name, log in logs.items()))
        return Path(folder_of_run), [*codes[1:], codes[0]]


def follow(log: IO[str], processes: list[subprocess.Popen[str]]) -> None:
    """Show the server's log as it grows, until every process has ended or one has failed."""
    position = 0
    while True:
        over = all(p.poll() is not None for p in processes) or any(p.poll() for p in processes)
        log.seek(position)
        for line in log:
            print("  server |", line.rstrip())
        position = log.tell()
        if over:
            return
        time.sleep(0.2)


def _tail(log: IO[str]) -> str:
    log.seek(0)
    return log.read()[-4000:]


def report(run_dir: Path, seconds: float) -> None:
    """Print the table of each task's metrics before and after."""
    summary = json.loads((run_dir / "summary.json").read_text())
    before, after = summary["history"][0]["tasks"], summary["tasks"]
    table = Table(title=f"one model, three tasks, {summary['rounds_completed']} rounds (synthetic data)")
    for heading in ("task", "metric", "round 0", f"round {summary['rounds_completed']}", "chance", "examples"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for task in TASKS:
        for metric in (name for name in after[task] if name not in ("loss", "examples", "clients")):
            chance = f"{CHANCE[task]:.2f}" if metric == PRIMARY[task] else ""
            row = (task, metric, f"{before[task][metric]:.3f}", f"{after[task][metric]:.3f}", chance)
            table.add_row(*row, str(after[task]["examples"]))
    Console(width=100).print(table)
    model = summary["model"]
    print(
        f"model: {model['encoder']}; {model['shared_parameters']:,} shared parameters, "
        f"heads {', '.join(f'{task} {count}' for task, count in model['head_parameters'].items())}"
    )
    print(f"bytes: {summary['bytes_down'] / 1e6:.1f} MB to the clients, {summary['bytes_up'] / 1e6:.1f} MB back")
    print(f"time:  {seconds:.0f} s in all, {summary['seconds']:.0f} s of it the run")
    print(f"run directory: {run_dir}")
    print(f"next: {sys.executable} -m server export --run {run_dir} --task sst2 --out sst2-model")


def main() -> None:
    """Run the demo and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--run-dir", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    run_dir, _ = run(arguments.config, arguments.run_dir)
    report(run_dir, time.monotonic() - began)
    worse = [task for task in TASKS if not _learned(run_dir, task)]
    if worse:
        raise SystemExit(f"not clearly better than chance: {', '.join(worse)}")


def _learned(run_dir: Path, task: str) -> bool:
    summary = json.loads((run_dir / "summary.json").read_text())
    return bool(summary["tasks"][task][PRIMARY[task]] > CHANCE[task] + 0.2)


if __name__ == "__main__":
    main()
