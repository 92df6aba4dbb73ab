"""What a round costs beside training: a real server, real client processes, constant deltas returned at once.

``--parameters`` is the size of the shared encoder: 4385920 is bert-tiny with its pooler (39 tensors), 109482240
bert-base; other sizes change the vocabulary. Every client has one of three tasks and moves the encoder and its head
both ways each round.

``floor_s`` is a physical limit measured right after, in the same run: as many processes take the same bytes over
plain loopback TCP and send the same bytes back, and the sender adds them up once in float32. It frames nothing,
checks nothing, stores nothing and forgets everything when it is killed; the server does checksum, verify, write to
disk with fsync before it acknowledges, sum in float64, and commit a version to disk in every round.

How to read the result: ``median_s`` is the time from the start of one round to the start of the next,
``server_rss_mb`` the server's peak resident memory over its life, ``server_base_mb`` what it holds before any
client comes (Python, torch, transformers and the model), ``server_cpu_s`` its CPU
time per round, user and system. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

ROOT: Final = Path(__file__).resolve().parent.parent
TASKS: Final = ("sst2", "qqp", "stsb")
TINY: Final = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
BASE: Final = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def geometry(parameters: int) -> dict[str, Any]:
    """A BERT configuration with (almost) so many parameters: bert-tiny's or bert-base's layers, vocabulary to fit."""
    shape = BASE if parameters > 50_000_000 else TINY
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    fixed = shape["num_hidden_layers"] * layer + (512 + 2 + 2) * width + width * width + width
    vocabulary = (parameters - fixed) // width
    if vocabulary < 1000:
        raise SystemExit(f"--parameters {parameters}: at least {fixed + 1000 * width}")
    return {"model_type": "bert", **shape, "vocab_size": vocabulary, "max_position_embeddings": 512}


def configuration(arguments: argparse.Namespace, **run_keys: bool) -> dict[str, Any]:
    """The server's configuration; `run_keys` are further keys of its section ``run``."""
    encoder = {"config": geometry(arguments.parameters), "tokenizer": "synthetic-words"}
    return {
        "run": {"rounds": arguments.rounds, "keep_versions": 1, **run_keys},
        "server": {"port": 0},
        "federation": {"min_clients": arguments.clients, "evaluate": "none"},
        "model": {"family": "transformer", "encoder": encoder, "pooling": "cls"},
        "tasks": {task: {"use": task, "data": {"synthetic": task}} for task in TASKS},
    }


def memory_mb(pid: int, field: str) -> float:
    """One of the kernel's figures for a process, in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"no {field} for process {pid}")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(arguments: argparse.Namespace, folder: Path, **run_keys: bool) -> dict[str, Any]:
    """Run the federation; figures from its own history."""
    config, run_dir = folder / "config.yaml", folder / "run"
    config.write_text(yaml.safe_dump(configuration(arguments, **run_keys)))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "server", "--config", str(config), "--run-dir", str(run_dir)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        clients: list[subprocess.Popen[str]] = []
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split("url=http")[1].split()[0]
            base = memory_mb(server.pid, "VmRSS")
            for number in range(arguments.clients):
                task = TASKS[number % len(TASKS)]
                words = ["-m", "benchmarks.noop_client", "--client-id", f"{task}_{number}", "--task", task]
                words += ["--server", f"ws{url}/ws"]
                clients.append(
                    subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stderr=log, text=True)
                )
            peak, cpu_before = base, cpu_seconds(server.pid)
            cpu = cpu_before
            while server.poll() is None and not any(client.poll() for client in clients):
                try:
                    peak = max(peak, memory_mb(server.pid, "VmHWM"))
                    cpu = cpu_seconds(server.pid)
                except (FileNotFoundError, ProcessLookupError, SystemExit):
                    break
                time.sleep(0.05)
            codes = [client.wait() for client in clients] + [server.wait()]
        finally:
            for process in (*clients, server):
                if process.poll() is None:
                    process.terminate()
    if any(codes):
        raise SystemExit(f"exit codes {codes}\n" + (folder / "log").read_text()[-4000:])
    result = figures(arguments, run_dir, base, peak)
    return {**result, "server_cpu_s": (cpu - cpu_before) / arguments.rounds}


def figures(arguments: argparse.Namespace, run_dir: Path, base: float, peak: float) -> dict[str, Any]:
    """What the run's history says."""
    summary = json.loads((run_dir / "summary.json").read_text())
    between, phases = round_times(run_dir)
    rounds = summary["history"][1:]
    head = max(summary["model"]["head_parameters"].values())
    return {
        "parameters": summary["model"]["shared_parameters"],
        "payload_bytes": 4 * (summary["model"]["shared_parameters"] + head),
        "median_s": statistics.median(between),
        "min_s": min(between),
        "max_s": max(between),
        "reduce_s": statistics.median(phase["reduce"] for phase in phases),
        "commit_s": statistics.median(phase["commit"] for phase in phases),
        "bytes_down_per_client": statistics.median(row["bytes_down"] for row in rounds) / arguments.clients,
        "bytes_up_per_client": statistics.median(row["bytes_up"] for row in rounds) / arguments.clients,
        "server_rss_mb": peak,
        "server_base_mb": base,
        "model_mb": 4 * summary["model"]["total_parameters"] / 1e6,
    }


def round_times(run_dir: Path) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds from each round's start to the next one's, and the seconds of each round by phase."""
    with sqlite3.connect(run_dir / "run.db") as database:
        started = [row[0] for row in database.execute("SELECT started FROM rounds ORDER BY round")]
        phases = [json.loads(row[0]) for row in database.execute("SELECT phases FROM rounds ORDER BY round")]
    return [later - earlier for earlier, later in itertools.pairwise(started)], phases


def echo(port: int, nbytes: int, rounds: int) -> None:
    """The floor's other side: take the bytes, send as many back."""
    buffer = np.zeros(nbytes, np.uint8)
    view = buffer.data
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(rounds):
            receive(connection, view)
            connection.sendall(view)


def receive(connection: socket.socket, view: memoryview) -> None:
    """Fill a buffer."""
    done = 0
    while done < len(view):
        got = connection.recv_into(view[done:])
        if not got:
            raise SystemExit("the floor's peer is gone")
        done += got


def floor(clients: int, nbytes: int, rounds: int) -> float:
    """Median seconds in which the same bytes cross loopback both ways and are added up once."""
    context = multiprocessing.get_context("spawn")
    model = np.zeros(nbytes // 4, np.float32)
    buffers = [np.zeros(nbytes // 4, np.float32) for _ in range(clients)]
    with socket.create_server(("127.0.0.1", 0), backlog=clients) as listener:
        port = listener.getsockname()[1]
        peers = [context.Process(target=echo, args=(port, nbytes, rounds), daemon=True) for _ in range(clients)]
        for peer in peers:
            peer.start()
        connections = [listener.accept()[0] for _ in peers]

        def both_ways(connection: socket.socket, buffer: np.ndarray[Any, np.dtype[np.float32]]) -> None:
            connection.sendall(model.data.cast("B"))
            receive(connection, buffer.data.cast("B"))

        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            threads = [threading.Thread(target=both_ways, args=pair) for pair in zip(connections, buffers, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for buffer in buffers:
                model += buffer
            times.append(time.perf_counter() - began)
        for connection in connections:
            connection.close()
        for peer in peers:
            peer.join()
    return statistics.median(times)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=4_385_920)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, Path(folder))
    limit = floor(arguments.clients, result["payload_bytes"], arguments.rounds)
    line = {
        "benchmark": "round_overhead",
        "clients": arguments.clients,
        "rounds": arguments.rounds,
        **result,
        "floor_s": limit,
        "times_floor": result["median_s"] / limit,
        "models_in_memory": result["server_rss_mb"] / result["model_mb"],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
