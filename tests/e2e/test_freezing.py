"""What is frozen stays as it is, what is opened is trained from its round on, who has nothing to train evaluates."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file

from common.messages import Work
from common.plan import Slice
from server.export_run import export_run
from server.model_state import ModelState
from server.run_directory import load_version
from tests.e2e.configs import TASKS, small
from tests.e2e.peers import MadeUpWork, Tabled, see_through, session
from tests.e2e.programs import Programs, Server


def committed(server: Server) -> dict[int, ModelState]:
    """The versions on disk by number."""
    found = [load_version(path) for path in sorted((server.run_dir / "model").glob("round-*.safetensors"))]
    return {model.version: model for model in found}


def moved(before: ModelState, after: ModelState) -> set[str]:
    """The blueprint groups of which some slot has another value (heads as ``head:TASK``)."""
    return {
        f"head:{min(slot.tasks)}" if slot.spec.group == "head" else slot.spec.group
        for slot in before.plan.slots
        if not before.values[slot.id].equal(after.values[slot.id])
    }


def test_real_clients_train_what_is_open_and_send_nothing_else(programs: Programs) -> None:
    """Backbone and one head frozen: one client only evaluates, the others train and send their heads."""
    config = small(run={"rounds": 2}, freezing={"freeze": ["backbone", "head:stsb"]})
    server = programs.server(config)
    clients = [programs.client(server, f"{task}_client") for task in TASKS]
    assert [client.wait() for client in clients] == [0, 0, 0]
    assert server.wait() == 0
    versions = committed(server)
    assert moved(versions[0], versions[2]) == {"head:sst2", "head:qqp"}
    summary = server.summary()
    assert [row["participants"] for row in summary["history"][1:]] == [["qqp_client", "sst2_client"]] * 2
    assert all(row["tasks"].keys() == set(TASKS) for row in summary["history"]), "all evaluate every version"
    with sqlite3.connect(server.run_dir / "run.db") as database:
        sent = dict(database.execute("SELECT client_id, max(bytes) FROM updates GROUP BY client_id"))
    heads = {
        t: sum(s.spec.numel for s in versions[0].plan.slots if s.spec.group == "head" and t in s.tasks) for t in TASKS
    }
    assert sent == {f"{task}_client": 4 * heads[task] for task in ("sst2", "qqp")}


async def test_one_head_frozen_and_its_task_still_moves_the_encoder(programs: Programs) -> None:
    server = programs.server(
        small(["sst2", "qqp"], run={"rounds": 1}, federation={"min_clients": 2}, freezing={"freeze": ["head:sst2"]})
    )
    await see_through(server, session(server.address, "sst2"), session(server.address, "qqp"))
    versions = committed(server)
    assert moved(versions[0], versions[1]) == {"embeddings", "layer.0", "head:qqp"}
    assert server.summary()["history"][1]["participants"] == ["qqp", "sst2"]


async def test_with_everything_frozen_version_0_is_evaluated_and_the_run_is_done(programs: Programs) -> None:
    server = programs.server(small(["sst2", "qqp"], federation={"min_clients": 2}, freezing={"freeze": "everything"}))
    works = [MadeUpWork(), MadeUpWork()]
    await see_through(server, session(server.address, "sst2", works[0]), session(server.address, "qqp", works[1]))
    assert [work.received for work in works] == [{}, {}], "nobody trained"
    summary = server.summary()
    assert (summary["state"], summary["rounds_completed"]) == ("finished", 0)
    assert summary["reason"] == "nothing is left to train in round 1: everything is frozen"
    assert summary["tasks"].keys() == {"sst2", "qqp"}
    assert summary["best"]["overall"]["version"] == 0
    again = programs.server(None, "--resume", ready=False)
    assert again.wait() == 0, "and it stays done"
    assert "the run is finished: nothing is left to train" in again.log()


async def test_stages_open_in_their_rounds_and_the_plan_says_so(programs: Programs) -> None:
    stages = [{"from_round": 1, "open": "heads"}, {"from_round": 3, "open": "everything"}]
    rules = {"min_clients": 1}
    config = small(["sst2"], run={"rounds": 3, "keep_versions": 9}, federation=rules, freezing={"schedule": stages})
    plans: list[dict[str, Any]] = []
    server = programs.server(config)

    def ask(work: Work, cancelled: threading.Event) -> None:
        del cancelled
        plans.append(httpx.get(f"{server.url}/api/v1/plan", trust_env=False).json())
        assert {s.frozen for s in Slice.from_dict(work.slice).slots if s.spec.group == "head"} == {False}

    await see_through(server, session(server.address, "sst2", MadeUpWork(ask)))
    versions = committed(server)
    assert [moved(versions[n], versions[n + 1]) for n in range(3)] == [
        {"head:sst2"},
        {"head:sst2"},
        {"embeddings", "layer.0", "head:sst2"},
    ]
    assert [[change["from_round"] for change in plan["changes"]] for plan in plans[:2]] == [[1], [1]]
    assert any(slot["frozen"] for slot in plans[1]["current"]["slots"])
    assert not any(slot["frozen"] for slot in plans[2]["current"]["slots"])
    assert "now trainable" in server.log()
    # What the file of a version says is the plan of the round that starts from it.
    assert [versions[n].plan.digest == versions[3].plan.digest for n in range(4)] == [False, False, True, True]


async def test_a_late_update_counts_under_the_plan_of_its_own_round(programs: Programs) -> None:
    """Asynchronous: b's update of round 1, of heads only, comes when the encoder is open."""
    stages = [{"from_round": 1, "open": "heads"}, {"from_round": 2, "open": "everything"}]
    rules = {"min_clients": 2, "late_updates": "async", "buffer": {"size": 1}, "evaluate": "none"}
    server = programs.server(small(["sst2", "qqp"], run={"rounds": 3}, federation=rules, freezing={"schedule": stages}))
    second, counted = threading.Event(), threading.Event()

    def fast(work: Work, cancelled: threading.Event) -> None:
        del cancelled
        if work.round == 2:
            second.set()
        if work.round > 1:
            counted.wait(30)

    def slow(work: Work, cancelled: threading.Event) -> None:
        del cancelled
        if work.round == 1:
            assert second.wait(30)
        else:
            counted.set()

    await see_through(
        server,
        session(server.address, "sst2", MadeUpWork(fast)),
        session(server.address, "qqp", MadeUpWork(slow)),
    )
    with sqlite3.connect(server.run_dir / "run.db") as database:
        rows = database.execute(
            "SELECT round, trained_round FROM updates WHERE client_id = 'qqp' ORDER BY round"
        ).fetchall()
    assert (2, 1) in rows
    assert "plan_mismatch" not in server.log()


@pytest.mark.parametrize("when_stopped", ["freeze_head", "leave"])
async def test_tasks_that_improve_no_more_stop_and_with_the_last_of_them_the_run(
    programs: Programs, when_stopped: str
) -> None:
    selection = {"early_stopping": {"patience": 2, "when_stopped": when_stopped}}
    config = small(
        ["sst2", "qqp"],
        run={"rounds": 20, "keep_versions": 2},
        federation={"min_clients": 2},
        selection=selection,
    )
    server = programs.server(config)
    works = {"sst2": Tabled(0.5, 0.8, 0.7), "qqp": Tabled(0.1, 0.2, 0.3, 0.4, 0.5, 0.4)}
    await see_through(server, *(session(server.address, task, work) for task, work in works.items()))
    summary = server.summary()
    # sst2: versions 2 and 3 are no better than 1, known when round 4 closes: its head is frozen from round 5 on.
    # qqp: versions 5 and 6 are no better than 4, known when round 7 closes: version 7 is the last.
    assert summary["stopped"] == {"sst2": 3, "qqp": 6}
    assert summary["rounds_completed"] == 7
    assert summary["reason"] == "every task has stopped improving: qqp at version 6, sst2 at version 3"
    assert {key: row["version"] for key, row in summary["best"].items()} == {"sst2": 1, "qqp": 4, "overall": 4}
    versions = committed(server)
    assert set(versions) == {0, 1, 4, 6, 7}
    assert moved(versions[4], versions[6]) == {"embeddings", "layer.0", "head:qqp"}
    seen = [row["participants"] for row in summary["history"][1:]]
    late = ["qqp"] if when_stopped == "leave" else ["qqp", "sst2"]
    assert seen == [["qqp", "sst2"]] * 4 + [late] * 3
    assert works["sst2"].evaluated == works["qqp"].evaluated == list(range(8)), "all evaluate to the end"
    assert "sst2 has stopped: version 3 is one more without a better accuracy" in server.log()

    out = programs.folder / "best"
    await asyncio.to_thread(export_run, server.run_dir, "sst2", out, "best")
    exported = load_file(out / "model.safetensors").values()
    slot = next(slot.id for slot in versions[1].plan.slots if slot.parameter.startswith("encoder.embeddings.word"))
    assert any(
        value.shape == versions[1].values[slot].shape and value.equal(versions[1].values[slot]) for value in exported
    )
