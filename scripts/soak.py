"""``make soak``: many rounds with clients that die and come back, and nothing may grow in the server.

A real server, and client processes with made-up updates (`benchmarks.noop_client`). In every round a seeded choice of
clients is killed with SIGKILL, half of them as the round begins and half as their update is acknowledged, and each
comes back at once. After every round the server's memory, threads and descriptors are read from the kernel, and its
asyncio tasks from `/metrics`.

How to read the result: ``growth`` is memory after the last round over that after round 20 (less 1); more than 5 %
fails. At any one moment some clients come or go, so of threads, descriptors and tasks the medians of ten rounds, up to
round 20 and up to the last, are compared: more than one for each client more fails, where one left behind per death
would be hundreds. ``round_s`` are median seconds of rounds in the same parts: a server that slows down keeps something
too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.noop_client import take_part
from benchmarks.round_overhead import ROOT, TASKS, memory_mb
from common.seeds import derive_seed

SETTLED_AFTER: Final = 20
MOST_GROWTH: Final = 0.05
#: Rounds of which medians are compared.
WINDOW: Final = 10
PATIENCE_S: Final = 60.0
ENCODER: Final = {
    "config": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
    },
    "tokenizer": "synthetic-words",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """The server after a round."""

    round: int
    rss_mb: float
    threads: int
    descriptors: int
    tasks: int
    at: float


class Crowd:
    """The clients, each a process that can be killed and replaced.

    Args:
        address: the server's, ``ws://HOST:PORT/ws``.
        number: how many; they take the tasks in turn.
    """

    def __init__(self, address: str, number: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._address = address
        self._tasks = {f"{TASKS[i % len(TASKS)]}_{i:02d}": TASKS[i % len(TASKS)] for i in range(number)}
        self._processes: dict[str, ForkServerProcess] = {}
        self.killed = 0

    @property
    def client_ids(self) -> Sequence[str]:
        """All of them."""
        return sorted(self._tasks)

    def start(self) -> None:
        """Start every client."""
        for client_id in self._tasks:
            self._start(client_id)

    def _start(self, client_id: str) -> None:
        told = (self._address, client_id, self._tasks[client_id])
        process = self._context.Process(target=take_part, args=told, daemon=True)
        process.start()
        self._processes[client_id] = process

    def replace(self, client_id: str) -> None:
        """Kill a client and start it again."""
        process = self._processes.pop(client_id)
        process.kill()
        process.join()
        process.close()
        self.killed += 1
        self._start(client_id)

    def end(self) -> None:
        """Kill those that still run."""
        for process in self._processes.values():
            process.kill()
            process.join()
            process.close()
        self._processes.clear()


def configuration(clients: int) -> dict[str, Any]:
    """The server's: a run without an end in which every round needs every client; the model is as small as can be."""
    return {
        "run": {"rounds": 1_000_000},
        # A client comes back before the server can know that it was killed.
        "server": {"port": 0, "duplicate_client": "take_over"},
        "federation": {"min_clients": clients, "quorum": 1.0, "rejoin_grace_s": 120.0},
        "model": {"family": "transformer", "encoder": ENCODER, "pooling": "mean", "max_length": 32},
        "tasks": {task: {"use": task, "data": {"synthetic": task}} for task in TASKS},
    }


def events(url: str) -> Generator[dict[str, Any], None, None]:
    """What the server's event stream says, until it ends."""
    with (
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as http,
        http.stream("GET", f"{url}/api/v1/events") as response,
        contextlib.suppress(httpx.RemoteProtocolError),  # the server ended
    ):
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def sample(url: str, pid: int, round_id: int) -> Sample:
    """Look at the server."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=PATIENCE_S).text
    values = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    threads = len(os.listdir(f"/proc/{pid}/task"))
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    tasks = int(values["fedmtl_asyncio_tasks"])
    return Sample(round_id, memory_mb(pid, "VmRSS"), threads, descriptors, tasks, time.monotonic())


def soak(url: str, pid: int, crowd: Crowd, *, rounds: int, deaths: int, seed: int) -> list[Sample]:
    """Run the clients against a server; both go on when this returns.

    Args:
        url: of the server, which has just started.
        pid: its process.
        crowd: the clients, not started.
        rounds: to look at.
        deaths: clients killed in each.
        seed: of the choice.

    Returns:
        A sample after each round.
    """
    samples: list[Sample] = []
    dying: set[str] = set()
    with contextlib.closing(events(url)) as feed:
        next(feed)  # the status: from now on nothing is missed
        crowd.start()
        for event in feed:
            match event.get("kind"):
                case "round_started":
                    done = event["round"] - 1
                    if done:
                        samples.append(sample(url, pid, done))
                        if done % 10 == 0:
                            print(samples[-1], flush=True)
                    if done == rounds:
                        return samples
                    draw = random.Random(derive_seed(seed, "deaths", done))  # noqa: S311  # of a test
                    victims = draw.sample(crowd.client_ids, deaths)
                    dying = set(victims[1::2])
                    for client_id in victims[::2]:
                        crowd.replace(client_id)
                case "update_accepted" if event["client_id"] in dying:
                    dying.discard(event["client_id"])
                    crowd.replace(event["client_id"])
                case _:
                    pass
    raise SystemExit(f"the run ended after {len(samples)} rounds")


def verdict(samples: Sequence[Sample], settled_after: int, clients: int) -> tuple[dict[str, Any], list[str]]:
    """The figures, and what is wrong with them."""
    settled, last = next(s for s in samples if s.round == settled_after), samples[-1]
    before = [s for s in samples if settled_after - WINDOW < s.round <= settled_after]
    after = samples[-WINDOW:]
    growth = last.rss_mb / settled.rss_mb - 1
    wrong = [f"memory grew by {growth:.1%}"] if growth > MOST_GROWTH else []
    figures: dict[str, Any] = {
        "rounds": last.round,
        "rss_mb": {"round": settled.round, "then": settled.rss_mb, "last": last.rss_mb},
        "growth": growth,
    }
    for name in ("threads", "descriptors", "tasks"):
        then, now = (statistics.median(getattr(s, name) for s in part) for part in (before, after))
        figures[name] = {"then": then, "last": now, "most": max(getattr(s, name) for s in samples)}
        if now > then + clients:
            wrong.append(f"{name}: {then:g} around round {settled.round}, {now:g} at the end")
    parts = {"then": before, "last": after}
    figures["round_s"] = {
        name: statistics.median(later.at - earlier.at for earlier, later in itertools.pairwise(part))
        for name, part in parts.items()
    }
    return figures, wrong


def main() -> None:
    """Run, print, and fail when something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--deaths", type=int, default=2, help="clients killed in each round")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.noop_client"])
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("w+") as log:
        folder = Path(name)
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration(arguments.clients)), encoding="utf-8")
        words = ["-m", "server", "--config", str(folder / "config.yaml"), "--run-dir", str(folder / "run")]
        server = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        crowd = None
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            if not ready:
                raise SystemExit(f"the server did not start:\n{(folder / 'log').read_text()[-4000:]}")
            url = ready.split("url=")[1].split()[0]
            crowd = Crowd(f"{url.replace('http', 'ws', 1)}/ws", arguments.clients)
            rounds, deaths, seed = arguments.rounds, arguments.deaths, arguments.seed
            samples = soak(url, server.pid, crowd, rounds=rounds, deaths=deaths, seed=seed)
            server.terminate()
            code = server.wait(PATIENCE_S)
        finally:
            if crowd is not None:
                crowd.end()
            if server.poll() is None:
                server.kill()
        if code:
            raise SystemExit(f"the server ended with {code}\n{(folder / 'log').read_text()[-4000:]}")
    figures, wrong = verdict(samples, min(SETTLED_AFTER, arguments.rounds // 2), arguments.clients)
    figures |= {"clients": arguments.clients, "killed": crowd.killed, "wrong": wrong}
    print(json.dumps({"soak": "rounds", **figures}))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
