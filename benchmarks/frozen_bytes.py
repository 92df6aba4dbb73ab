"""Bytes per round with everything open, 2 of 12 layers open, and the heads alone: what is frozen does not travel.

A real server, real client processes of no training (`benchmarks.noop_client`) over real sockets, an encoder with
bert-base's 12 layers and 199 tensors at a smaller width (``--width``; 768 is bert-base itself). In the third of four
rounds one client is killed and started again with its state folder, as after a reboot.

How to read the result: ``payload_down`` and ``payload_up`` are the bytes of tensors per round over all clients, from
the run's own ledger (``slot_bytes`` in ``run.db``); the last number of ``payload_down`` is the evaluation of the last
version. ``frozen_down`` is the part of it that is frozen: all of it in the first round, nothing after. ``frames_down``
and ``frames_up`` are all bytes of the same rounds, frames, headers and assets included. ``share_down`` and ``share_up``
compare the second rounds of 2 of 12 layers and of all. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from common.plan import SharingPlan

ROOT: Final = Path(__file__).resolve().parent.parent
TASKS: Final = ("sst2", "qqp", "stsb")
#: What is frozen in each scenario, by selectors.
SCENARIOS: Final[dict[str, tuple[str, ...]]] = {
    "full": (),
    "2_of_12": ("embeddings", "layers:0-9"),
    "heads": ("backbone",),
}
ROUNDS: Final = 4
PATIENCE_S: Final = 120.0


def configuration(width: int, frozen: Sequence[str]) -> dict[str, Any]:
    """The server's configuration."""
    shape = {"num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30_522, "max_position_embeddings": 512}
    encoder = {"model_type": "bert", "hidden_size": width, "intermediate_size": 4 * width, **shape}
    return {
        "run": {"rounds": ROUNDS, "keep_versions": 1, "fsync": False},
        "server": {"port": 0},
        "federation": {"min_clients": len(TASKS), "rejoin_grace_s": PATIENCE_S},
        "model": {
            "family": "transformer",
            "encoder": {"config": encoder, "tokenizer": "synthetic-words"},
            "pooling": "cls",
        },
        "tasks": {task: {"use": task, "data": {"synthetic": task}} for task in TASKS},
        "freezing": {"freeze": list(frozen)},
    }


class Scenario:
    """One run.

    Args:
        name: a key of `SCENARIOS`.
        folder: for everything it writes.
        width: of the encoder.
    """

    def __init__(self, name: str, folder: Path, width: int) -> None:
        self.run_dir, self._state, self._log = folder / "run", folder / "state", folder / "log"
        self._environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration(width, SCENARIOS[name])))
        self._config = folder / "config.yaml"
        self._processes: list[subprocess.Popen[str]] = []

    def run(self) -> dict[str, Any]:
        """Run it to the end; figures from the run's history."""
        try:
            words = ["server", "--config", str(self._config), "--run-dir", str(self.run_dir)]
            federation = self._start(*words, stdout=subprocess.PIPE)
            assert federation.stdout is not None
            line = federation.stdout.readline()
            if "url=http" not in line:
                raise SystemExit(self._log.read_text()[-4000:])
            address = f"ws{line.split('url=http')[1].split()[0]}/ws"
            clients = {task: self._client(task, address) for task in TASKS}
            self._await_version(ROUNDS - 2)
            clients[TASKS[0]].send_signal(signal.SIGKILL)
            clients[TASKS[0]].wait()
            clients[TASKS[0]] = self._client(TASKS[0], address)
            codes = [process.wait(PATIENCE_S) for process in (*clients.values(), federation)]
            if any(codes):
                raise SystemExit(f"exit codes {codes}\n{self._log.read_text()[-4000:]}")
        finally:
            for process in self._processes:
                if process.poll() is None:
                    process.kill()
        return self._figures()

    def _start(self, *words: str, stdout: int | None = None) -> subprocess.Popen[str]:
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=ROOT, env=self._environment, stdout=stdout, stderr=log, text=True
            )
        self._processes.append(process)
        return process

    def _client(self, task: str, address: str) -> subprocess.Popen[str]:
        words = ["--client-id", f"{task}_client", "--task", task, "--server", address, "--state-dir", str(self._state)]
        # The client that is to be killed takes so long for a round that it is killed in the middle of one.
        seconds = "0.5" if task == TASKS[0] else "0"
        return self._start("benchmarks.noop_client", *words, "--seconds", seconds)

    def _await_version(self, version: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                if json.loads((self.run_dir / "summary.json").read_text())["rounds_completed"] >= version:
                    return
            except (FileNotFoundError, json.JSONDecodeError):
                pass
            time.sleep(0.02)
        raise SystemExit(f"version {version} did not come\n{self._log.read_text()[-4000:]}")

    def _figures(self) -> dict[str, Any]:
        with sqlite3.connect(self.run_dir / "run.db") as database:
            [(content,)] = database.execute("SELECT plan FROM plans ORDER BY since_version DESC LIMIT 1").fetchall()
            plan = SharingPlan.from_dict(json.loads(content))
            rows = database.execute(
                "SELECT round, slots.slot, down, up FROM slot_bytes JOIN slots ON number = slot_bytes.slot"
            ).fetchall()
            frames = database.execute("SELECT bytes_down, bytes_up FROM rounds ORDER BY round").fetchall()
        database.close()
        frozen = {slot.id for slot in plan.slots if slot.frozen}
        numbers = range(1, ROUNDS + 2)
        return {
            "tensors": len(plan.slots),
            "parameters": sum(slot.spec.numel for slot in plan.slots),
            "open_parameters": sum(slot.spec.numel for slot in plan.slots if not slot.frozen),
            "payload_down": [sum(down for number, _, down, _ in rows if number == n) for n in numbers],
            "payload_up": [sum(up for number, _, _, up in rows if number == n) for n in numbers[:-1]],
            "frozen_down": [
                sum(down for number, slot, down, _ in rows if number == n and slot in frozen) for n in numbers
            ],
            "frames_down": [down for down, _ in frames],
            "frames_up": [up for _, up in frames],
        }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=120, help="hidden size, a multiple of 12")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "frozen_bytes", "width": arguments.width, "clients": len(TASKS)}
    for name in SCENARIOS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            result[name] = Scenario(name, Path(folder), arguments.width).run()
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    full, part = result["full"], result["2_of_12"]
    result["share_down"] = part["payload_down"][1] / full["payload_down"][1]
    result["share_up"] = part["payload_up"][1] / full["payload_up"][1]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
