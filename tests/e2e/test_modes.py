"""Who shares what, and who is asked: task weights, a model per task, cohorts, clients of two tasks, the whole model.

The clients' deltas are made up (`small_delta`), so each next version can be written down by hand.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.workload import WorkDeclined
from common.messages import Work
from server.model_state import ModelState
from server.run_directory import load_version
from tests.e2e.configs import TASKS, small
from tests.e2e.peers import MadeUpWork, see_through, session, small_delta
from tests.e2e.programs import Programs, Server


def versions(run_dir: Path) -> list[ModelState]:
    """Every committed version, the first ones first."""
    return [load_version(path) for path in sorted((run_dir / "model").glob("round-*.safetensors"))]


def assert_moved(before: ModelState, after: ModelState, shares: dict[str, dict[str, float]]) -> None:
    """Each slot moved by its clients' deltas; `shares` is task (or "shared") to client id to weight."""
    for slot in before.plan.slots:
        key = "shared" if len(slot.tasks) > 1 else min(slot.tasks)
        step = sum(
            weight * small_delta(slot, client, after.version).astype(np.float64)
            for client, weight in shares.get(key, {}).items()
        )
        found, start = after.values[slot.id].numpy(), before.values[slot.id].numpy()
        if key in shares:
            np.testing.assert_allclose(found, start + step, rtol=0, atol=1e-7, err_msg=slot.id)
        else:
            assert found.tobytes() == start.tobytes(), f"{slot.id} moved, though none of its tasks took part"


async def test_tasks_weigh_before_clients_do(programs: Programs) -> None:
    """A client of two tasks has both their weights; within a task examples count."""
    server = programs.server(small(run={"rounds": 1}, federation={"min_clients": 3}))
    await see_through(
        server,
        session(server.address, "a", MadeUpWork(examples=10), tasks=("sst2", "qqp")),
        session(server.address, "b", MadeUpWork(examples=30), tasks=("qqp",)),
        session(server.address, "c", MadeUpWork(examples=1000), tasks=("stsb",)),
    )
    before, after = versions(server.run_dir)
    shared = {"a": 1 / 3 * 1 + 1 / 3 * 10 / 40, "b": 1 / 3 * 30 / 40, "c": 1 / 3}
    assert_moved(before, after, {"shared": shared, "sst2": {"a": 1}, "qqp": {"a": 0.25, "b": 0.75}, "stsb": {"c": 1}})


async def test_a_model_per_task(programs: Programs) -> None:
    """``federation.mode: per_task``: the encoders start alike and part; no task moves another's."""
    rules = {"mode": "per_task", "min_clients": 2}
    server = programs.server(small(["sst2", "qqp"], run={"rounds": 2}, federation=rules))
    works = {task: MadeUpWork() for task in ("sst2", "qqp")}
    await see_through(server, *(session(server.address, task, work) for task, work in works.items()))
    first, second, third = versions(server.run_dir)
    assert all(len(slot.tasks) == 1 for slot in first.plan.slots)
    pairs = [(slot.id, slot.id.replace("@sst2", "@qqp")) for slot in first.plan.slots if "encoder" in slot.id]
    assert all(first.values[a].equal(first.values[b]) for a, b in pairs)
    for before, after in ((first, second), (second, third)):
        assert_moved(before, after, {"sst2": {"sst2": 1}, "qqp": {"qqp": 1}})
    assert not any(third.values[a].equal(third.values[b]) for a, b in pairs if a != b)
    for task, work in works.items():
        assert {slot.partition("@")[2] for slot in work.received[1]} == {task}, "a client gets its task's model only"


async def test_a_cohort_by_count_and_what_it_leaves_alone(programs: Programs) -> None:
    """One of three clients a round: the other tasks' heads keep their value bit for bit; everybody evaluates."""
    rules = {"min_clients": 3, "cohort": {"count": 1}}
    server = programs.server(small(run={"rounds": 5, "keep_versions": 9}, federation=rules))
    works = {task: MadeUpWork() for task in TASKS}
    await see_through(server, *(session(server.address, task, work) for task, work in works.items()))
    chosen = [row["participants"] for row in server.summary()["history"][1:]]
    assert [len(participants) for participants in chosen] == [1] * 5
    assert len({participants[0] for participants in chosen}) > 1, "it is not always the same"
    models = versions(server.run_dir)
    for (task,), before, after in zip(chosen, models, models[1:], strict=False):
        assert_moved(before, after, {"shared": {task: 1}, task: {task: 1}})
    assert sorted((task, number) for task, work in works.items() for number in work.received) == sorted(
        (task, number) for number, (task,) in enumerate(chosen, start=1)
    )
    assert all(row["tasks"].keys() == set(TASKS) for row in server.summary()["history"])


async def test_a_client_that_declines_is_left_out_of_its_round_only(programs: Programs) -> None:
    server = programs.server(small(["sst2", "qqp"], federation={"min_clients": 2}))

    def decline_the_first(work: Work, cancelled: threading.Event) -> None:
        del cancelled
        if work.round == 1:
            raise WorkDeclined("out of memory")

    await see_through(
        server, session(server.address, "sst2", MadeUpWork(decline_the_first)), session(server.address, "qqp")
    )
    first, second, third = versions(server.run_dir)
    assert_moved(first, second, {"shared": {"qqp": 1}, "qqp": {"qqp": 1}})
    assert_moved(second, third, {"shared": {"sst2": 0.5, "qqp": 0.5}, "sst2": {"sst2": 1}, "qqp": {"qqp": 1}})
    assert "round 1 goes on without sst2: out of memory" in server.log()


@pytest.mark.parametrize("rule", ["uniform", "examples", {"sst2": 3.0, "qqp": 1.0}], ids=["uniform", "examples", "own"])
async def test_task_weights(programs: Programs, rule: Any) -> None:  # noqa: ANN401  # a YAML value
    server = programs.server(
        small(["sst2", "qqp"], run={"rounds": 1}, federation={"min_clients": 2, "task_weights": rule})
    )
    await see_through(
        server,
        session(server.address, "sst2", MadeUpWork(examples=10)),
        session(server.address, "qqp", MadeUpWork(examples=90)),
    )
    share = {"uniform": 0.5, "examples": 0.1}.get(rule if isinstance(rule, str) else "", 0.75)
    before, after = versions(server.run_dir)
    shared = {"sst2": share, "qqp": 1 - share}
    assert_moved(before, after, {"shared": shared, "sst2": {"sst2": 1}, "qqp": {"qqp": 1}})


def run_real_clients(programs: Programs, name: str, *arguments: str) -> Server:
    """Three real clients, one round; heads are wide enough to be seen in the bytes."""
    heads = {"head": {"kind": "mlp", "hidden_size": 512}}
    server = programs.server(small(run={"rounds": 1}, model=heads), run_dir=programs.folder / name)
    clients = [programs.client(server, f"{task}_client", *arguments) for task in TASKS]
    assert [client.wait() for client in clients] == [0, 0, 0]
    assert server.wait() == 0
    return server


def test_full_synchronisation_gives_the_same_model_for_more_bytes(programs: Programs) -> None:
    """``--sync full`` moves the whole unified model both ways; a slice leaves out the other tasks' heads."""
    part, whole = run_real_clients(programs, "slice"), run_real_clients(programs, "full", "--sync", "full")
    assert whole.summary()["model"]["sha256"] == part.summary()["model"]["sha256"]
    model = part.summary()["model"]
    other_heads = 4 * 2 * sum(model["head_parameters"].values())  # bytes that the clients don't need, all together
    # Down twice: to train, and the version that came of it, to evaluate.
    for direction, transfers in (("bytes_down", 2), ("bytes_up", 1)):
        sliced, full = part.summary()[direction], whole.summary()[direction]
        assert full - sliced == pytest.approx(transfers * other_heads, rel=0.1), direction
    assert whole.summary()["bytes_down"] > 2 * 3 * 4 * model["total_parameters"] > part.summary()["bytes_down"]
