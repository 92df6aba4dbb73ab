"""Experts in a federation: what gates did is recorded and weighs, and who says nothing of it is refused."""

from __future__ import annotations

import asyncio
import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client.workload import TrainedUpdate
from common.messages import GateReport, Goodbye, Rejected
from server.run_directory import load_version
from tests.e2e.peers import PATIENCE_S, MadeUpWork, peer, see_through, session, small_delta, work_done
from tests.e2e.programs import Programs

TASKS = ("rich", "old")


def federation_of(folder: Path) -> dict[str, Any]:
    """Two tasks over one table of made-up people, an expert mixture over it."""
    people = np.random.default_rng(5).normal(size=(48, 2)).tolist()
    for name in TASKS:
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["hours", "years", "label"])
            for hours, years in people:
                writer.writerow([hours, years, "yes" if (hours if name == "rich" else years) > 0 else "no"])
    return {
        "run": {"rounds": 2, "seed": 3},
        "server": {"port": 0, "limits": {"silence_s": 30.0}},
        "federation": {"min_clients": 3, "rejoin_grace_s": 0, "evaluate": "none"},
        "model": {
            "family": "mmoe",
            "numeric": {"hours": {}, "years": {}},
            "experts": {"number": 3, "hidden": [4]},
            "tower": [],
        },
        "tasks": {
            name: {
                "kind": "classification",
                "labels": ["no", "yes"],
                "data": {"train": str(folder / f"{name}.csv")},
            }
            for name in TASKS
        },
        "training": {"local_steps": 3, "batch_size": 16, "learning_rate": 0.05},
    }


async def test_what_gates_did_is_recorded_and_silence_about_them_refused(programs: Programs, tmp_path: Path) -> None:
    server = programs.server(federation_of(tmp_path))
    async with (
        peer(server.address) as silent,
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE_S) as http,
    ):
        await silent.join("silent", tasks=("old",))
        clients = [programs.client(server, f"{name}_client", "--tasks", name) for name in TASKS]
        work = await silent.take_work()
        await silent.send_update(work_done(work, ["old"], "silent"))
        refused = await silent.expect(Rejected)
        assert refused.code == "malformed"
        assert "no gate of task 'old' reports on expert.0" in refused.reason
        await silent.take_work()  # the second round waits for it
        rows = (await http.get("/api/v1/rounds")).json()
        first = (await http.get("/api/v1/rounds/1")).json()
        await silent.send(Goodbye(reason="seen enough"))
    for program in (*clients, server):
        assert await asyncio.to_thread(program.wait) == 0

    history = server.summary()["history"]
    assert "gates" not in history[0]
    assert rows[1]["gates"] == first["gates"] == history[1]["gates"]
    for row in history[1:]:
        assert row["participants"] == ["old_client", "rich_client"]
        for task in TASKS:
            gate = row["gates"]["tasks"][task][task]
            assert gate["experts"] == ["expert.0", "expert.1", "expert.2"]
            assert sum(gate["load"]) == pytest.approx(1.0)
            assert gate["examples"] == row["training_examples"][task]
            assert 0 < gate["entropy"] < 1.0987
        [apart] = row["gates"]["distances"]
        assert apart["tasks"] == ["old", "rich"]
        assert 0 < apart["distance"] < 1
        assert sum(row["gates"]["experts"].values()) == pytest.approx(1.0)
    assert [update["tasks"].popitem()[1]["gates"].keys() for update in first["updates"]] == [{"old"}, {"rich"}]
    with sqlite3.connect(server.run_dir / "run.db") as database:
        stored = {number: json.loads(record) for number, record in database.execute("SELECT * FROM gates")}
    database.close()
    assert stored == {number: history[number]["gates"] for number in (1, 2)}
    assert "round 2: loads of 3 experts from" in server.log()


class Gated(MadeUpWork):
    """A delta for each slot, and a gate that gave the experts this much."""

    def __init__(self, *mass: float) -> None:
        super().__init__()
        self.report = GateReport(experts=tuple(f"expert.{n}" for n in range(len(mass))), mass=mass, entropy=0.5)

    def train(self, *given: Any) -> TrainedUpdate:  # noqa: ANN401  # passed on
        """As it is, with the report."""
        made = super().train(*given)
        return TrainedUpdate(
            {task: done.model_copy(update={"gates": {task: self.report}}) for task, done in made.tasks.items()},
            made.tensors,
        )


async def test_each_expert_moves_by_the_mass_that_the_clients_gates_gave_it(programs: Programs, tmp_path: Path) -> None:
    config = federation_of(tmp_path)
    config["run"]["rounds"], config["federation"]["min_clients"] = 1, 2
    server = programs.server(config)
    works = {"rich": Gated(9.0, 1.0, 0.0), "old": Gated(3.0, 7.0, 0.0)}
    await see_through(server, *(session(server.address, task, work) for task, work in works.items()))
    before, after = (load_version(path) for path in sorted((server.run_dir / "model").glob("round-*.safetensors")))
    weights = {"expert.0": {"rich": 0.75, "old": 0.25}, "expert.1": {"rich": 0.125, "old": 0.875}, "expert.2": {}}
    experts = [slot for slot in before.plan.slots if slot.spec.group in weights]
    assert len(experts) == 6
    for slot in experts:
        shares = weights[slot.spec.group]
        moved = sum(weight * small_delta(slot, client, 1).astype(np.float64) for client, weight in shares.items())
        wanted = before.values[slot.id].numpy() + moved
        np.testing.assert_allclose(after.values[slot.id].numpy(), wanted, rtol=0, atol=1e-7, err_msg=slot.id)
        assert shares or after.values[slot.id].equal(before.values[slot.id])
