"""What a run leaves on disk, and how it goes on from there."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from common.messages import Work
from server.config import load_config
from server.run_directory import load_version, sha256_of
from tests.e2e.configs import TASKS, small
from tests.e2e.peers import MadeUpWork, events, see_through, session, until
from tests.e2e.programs import PATIENCE_S, Programs, Server

#: The contract of docs and dashboards: these keys are always there.
SUMMARY = {
    "run_id", "state", "rounds_completed", "target_rounds", "tasks", "history", "model", "bytes_down", "bytes_up",
    "seconds",
}  # fmt: skip
TABLES = {"run", "rounds", "commits", "updates", "evaluations", "clients", "plans", "events"}
ROUNDS = 3


def config() -> dict[str, Any]:
    """Three clients of one task each."""
    return small(run={"rounds": ROUNDS}, federation={"min_clients": 3})


def rows(run_dir: Path, query: str) -> list[tuple[Any, ...]]:
    """What the run's database answers."""
    with closing(sqlite3.connect(f"file:{run_dir / 'run.db'}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


async def finished_run(programs: Programs, name: str = "run") -> Server:
    """A run with made-up updates, undisturbed."""
    server = programs.server(config(), run_dir=programs.folder / name)
    await see_through(server, *(session(server.address, f"{task}_client") for task in TASKS))
    return server


async def test_what_a_finished_run_leaves(programs: Programs) -> None:
    server = await finished_run(programs)
    run_dir = server.run_dir
    assert {path.name for path in run_dir.iterdir()} >= {"config.yaml", "run.db", "model", "spool", "summary.json"}
    _summary(server)
    _database(server)
    models = sorted(path.name for path in (run_dir / "model").iterdir())
    assert models == [f"round-{number:05d}.safetensors" for number in range(ROUNDS + 1)]
    assert list((run_dir / "spool").rglob("*.update")) == []
    loaded = load_config(run_dir / "config.yaml")
    assert loaded.config.run.rounds == ROUNDS
    assert loaded.specs.keys() == set(TASKS)

    again = programs.server(config(), run_dir=run_dir, ready=False)
    assert again.wait() == 2
    assert "--resume" in again.log()
    assert server.summary()["state"] == "finished"


def _summary(server: Server) -> None:
    summary = server.summary()
    assert summary.keys() >= SUMMARY
    assert (summary["state"], summary["rounds_completed"], summary["target_rounds"]) == ("finished", ROUNDS, ROUNDS)
    assert summary["tasks"].keys() == set(TASKS)
    assert summary["tasks"]["sst2"] == {"accuracy": ROUNDS, "loss": 1.0, "examples": 4, "clients": 1}
    assert summary["tasks"]["stsb"].keys() == {"pearson", "spearman", "loss", "examples", "clients"}
    assert [row["round"] for row in summary["history"]] == list(range(ROUNDS + 1))
    for row in summary["history"]:
        assert row.keys() >= {"round", "seconds", "bytes_down", "bytes_up", "tasks"}
        assert row["tasks"]["qqp"]["accuracy"] == row["round"], "each version has its own evaluation"
    assert sum(row["bytes_up"] for row in summary["history"]) <= summary["bytes_up"]
    model = summary["model"]
    assert model.keys() >= {"family", "encoder", "shared_parameters", "head_parameters", "total_parameters"}
    values = load_version(server.run_dir / "model" / f"round-{ROUNDS:05d}.safetensors").values
    assert model["total_parameters"] == sum(value.numel() for value in values.values())
    assert model["head_parameters"] == {"sst2": 34, "qqp": 34, "stsb": 17}
    assert model["shared_parameters"] + 34 + 34 + 17 == model["total_parameters"]
    assert model["sha256"] == sha256_of(server.run_dir / "model" / f"round-{ROUNDS:05d}.safetensors")


def _database(server: Server) -> None:
    run_dir = server.run_dir
    tables = {name for (name,) in rows(run_dir, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables >= TABLES
    assert rows(run_dir, "SELECT round FROM rounds ORDER BY round") == [(n,) for n in range(1, ROUNDS + 1)]
    assert rows(run_dir, "SELECT version FROM commits ORDER BY version") == [(n,) for n in range(ROUNDS + 1)]
    assert rows(run_dir, "SELECT count(*), count(DISTINCT client_id) FROM updates") == [(3 * ROUNDS, 3)]
    assert rows(run_dir, "SELECT count(*) FROM evaluations") == [(3 * (ROUNDS + 1),)]
    assert rows(run_dir, "SELECT client_id, tasks FROM clients ORDER BY client_id") == [
        (f"{task}_client", f'["{task}"]') for task in sorted(TASKS)
    ]
    assert rows(run_dir, "PRAGMA journal_mode") == [("wal",)]
    kinds = {kind for (kind,) in rows(run_dir, "SELECT kind FROM events")}
    assert kinds >= {"client_joined", "round_started", "update_accepted", "evaluated", "finished"}


async def test_arrivals_in_any_order_give_the_same_model(programs: Programs) -> None:
    """The second run takes its updates in the reverse order; each waits until the one before was accepted."""
    hashes = []
    for name, order in (("forth", TASKS), ("back", TASKS[::-1])):
        server = programs.server(config(), run_dir=programs.folder / name)
        turns = {(task, number): threading.Event() for task in TASKS for number in range(1, ROUNDS + 1)}

        def wait_for_turn(task: str, turns: dict[tuple[str, int], threading.Event] = turns) -> Any:  # noqa: ANN401  # a hook
            return lambda work, cancelled: turns[task, work.round].wait(PATIENCE_S) or cancelled.set()

        feed = events(server.url)
        await until(feed, "status")
        members = [
            asyncio.create_task(session(server.address, f"{task}_client", MadeUpWork(wait_for_turn(task))).run())
            for task in order
        ]
        for number in range(1, ROUNDS + 1):
            for task in order:
                turns[task, number].set()
                await until(feed, "update_accepted", round=number, client_id=f"{task}_client")
        await see_through(server, *members)
        arrived = rows(server.run_dir, "SELECT client_id FROM updates ORDER BY round, at")
        assert [client for (client,) in arrived] == [f"{task}_client" for task in order] * ROUNDS
        hashes.append(server.summary()["model"]["sha256"])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_a_stopped_run_goes_on_and_ends_with_the_same_model(programs: Programs, number: signal.Signals) -> None:
    """Stopped in round two, when one of three updates is there; the clients wait and come back by themselves."""
    undisturbed = (await finished_run(programs, "undisturbed")).summary()
    server = programs.server(config())
    gate, trained = threading.Event(), []

    def hold(work: Work, cancelled: threading.Event) -> None:
        del cancelled
        trained.append(work.round)
        assert work.round != 2 or gate.wait(PATIENCE_S)

    works = {"sst2": MadeUpWork(), "qqp": MadeUpWork(hold), "stsb": MadeUpWork(hold)}
    feed = events(server.url)
    await until(feed, "status")
    members = [
        asyncio.create_task(session(server.address, f"{task}_client", work).run()) for task, work in works.items()
    ]
    await until(feed, "update_accepted", round=2, client_id="sst2_client")
    run_id = server.summary()["run_id"]
    server.signal(number)
    began = time.monotonic()
    code = await asyncio.to_thread(server.wait)
    assert time.monotonic() - began < 10
    if number is signal.SIGTERM:
        assert code == 0
        assert server.summary()["state"] == "stopped"
        assert server.summary()["rounds_completed"] == 1
    else:
        assert code == -signal.SIGKILL
    await feed.aclose()  # type: ignore[attr-defined]  # an async generator

    port = server.url.rpartition(":")[2]
    resumed = programs.server(None, "--resume", "--set", f"server.port={port}", run_dir=server.run_dir)
    intruder = programs.server(None, "--resume", "--set", "server.port=0", run_dir=server.run_dir, ready=False)
    assert await asyncio.to_thread(intruder.wait) == 2
    assert "in use by another server" in intruder.log()
    gate.set()
    await see_through(resumed, *members)
    summary = resumed.summary()
    assert (summary["state"], summary["rounds_completed"]) == ("finished", ROUNDS)
    assert summary["run_id"] == run_id
    assert summary["model"]["sha256"] == undisturbed["model"]["sha256"]
    assert "round 2 goes on with the updates of sst2_client" in resumed.log()
    assert [row["round"] for row in summary["history"]] == list(range(ROUNDS + 1))
    assert rows(server.run_dir, "SELECT count(*) FROM updates") == [(3 * ROUNDS,)]
