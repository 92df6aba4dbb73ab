"""With 2 of 12 layers open what is frozen travels once, whatever is killed; the ledger has every byte."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from client.display import Display
from client.frozen_values import FOLDER, FrozenValues
from client.session import Identity, Session
from common.messages import DataReport, Heartbeat, Ready, Rejected, UpdateAck
from common.plan import SharingPlan, Slot
from common.tensors import NUMPY_DTYPES, encode_tensor
from common.value_key import KEY_BYTES, MAX_HELD
from tests.e2e.configs import small
from tests.e2e.peers import MadeUpWork, peer, replaced, see_through, work_done
from tests.e2e.programs import PATIENCE_S, Programs, Server

CLIENTS = ("sst2_client", "qqp_client")
TWELVE: dict[str, Any] = {
    "model": {"encoder": {"config": {"num_hidden_layers": 12}}},
    "freezing": {"freeze": ["embeddings", "layers:0-9"]},
}
CONFIG = small(["sst2", "qqp"], run={"rounds": 3}, federation={"min_clients": 2, "rejoin_grace_s": 60.0}, **TWELVE)
ALONE = small(["sst2"], run={"rounds": 2}, federation={"min_clients": 1}, **TWELVE)


def nbytes(slot: Slot) -> int:
    return slot.spec.numel * NUMPY_DTYPES[slot.dtype].itemsize


def expected(plan: SharingPlan, frozen: int, opened: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each slot when the frozen ones travelled so often, and for each client the others so often."""
    return {
        slot.id: nbytes(slot) * sum(frozen if slot.frozen else opened[task] for task in slot.tasks)
        for slot in plan.slots
    }


def booked(server: Server, round_id: int, side: str) -> dict[str, int]:
    """What the ledger has of a round."""
    with sqlite3.connect(server.run_dir / "run.db") as database:
        rows = database.execute(
            f"SELECT slots.slot, {side} FROM slot_bytes JOIN slots ON number = slot_bytes.slot WHERE round = ?",  # noqa: S608
            (round_id,),
        ).fetchall()
    database.close()
    return dict(rows)


def received(server: Server, round_id: int) -> int:
    """Bytes of the updates that count in a round."""
    with sqlite3.connect(server.run_dir / "run.db") as database:
        [(total,)] = database.execute("SELECT sum(bytes) FROM updates WHERE round = ?", (round_id,)).fetchall()
    database.close()
    return int(total)


def plan_of(server: Server) -> SharingPlan:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=PATIENCE_S) as http:
        return SharingPlan.from_dict(http.get("/api/v1/plan").json()["current"])


def cached(programs: Programs) -> list[Path]:
    return [path for path in (programs.state_dir / FOLDER).rglob("*") if path.is_file()]


def test_frozen_slots_travel_once_though_client_and_server_are_killed(programs: Programs) -> None:
    # The fifth update is the first of round 3: it is on disk then, and not acknowledged.
    server = programs.server(CONFIG, failpoint="update.counted=kill@5")
    plan = plan_of(server)
    frozen = {slot.id for slot in plan.slots if slot.frozen}
    assert len({plan.by_id[slot].spec.group for slot in frozen}) == 11
    other = programs.client(server, "qqp_client")
    killed = programs.client(server, "sst2_client", failpoint="client.trained=kill@2")
    assert killed.wait() == -9
    again = programs.client(server, "sst2_client")
    assert server.wait() == -9
    resumed = programs.server(None, "--resume", "--set", f"server.port={server.url.rpartition(':')[2]}")
    assert [program.wait() for program in (other, again, resumed)] == [0, 0, 0]

    once = {"sst2": 1, "qqp": 1}
    assert booked(resumed, 1, "down") == expected(plan, 1, once)
    assert booked(resumed, 2, "down") == expected(plan, 0, {"sst2": 2, "qqp": 1}), "one of them was started again"
    for round_id in (1, 2, 3):
        assert booked(resumed, round_id, "up") == expected(plan, 0, once)
        assert received(resumed, round_id) == sum(expected(plan, 0, once).values())
    # What the killed server had sent in round 3 is not in the books. The other one sent nothing that is frozen.
    third, last = booked(resumed, 3, "down"), booked(resumed, 4, "down")
    assert not any(third.get(slot) for slot in frozen)
    assert last == expected(plan, 0, once), "the last version is evaluated"
    assert cached(programs) == [], "the run is over"


async def test_a_value_that_is_altered_on_the_disk_is_sent_again_and_no_other(
    programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    server = programs.server(ALONE)
    plan = plan_of(server)
    frozen = FrozenValues(programs.state_dir)
    first = load_file(server.run_dir / "model" / "round-00000.safetensors")
    encoded = [encode_tensor(slot.id, first[slot.id]) for slot in plan.slots if slot.frozen]
    frozen.keep(server.summary()["run_id"], {tensor.header.key: tensor.parts[0] for tensor in encoded})
    altered = max(cached(programs), key=lambda path: path.stat().st_size)
    altered.write_bytes(bytes(altered.stat().st_size))
    work = MadeUpWork()
    identity = Identity(server.address, "sst2_client", reconnect_s=20.0)
    await see_through(server, Session(identity, work, Display(terminal=False), frozen=frozen))
    assert caplog.text.count("a frozen value is of no use on disk") == 1
    assert caplog.text.count("said to be held, but it is not") == 1
    down = {
        slot: size for slot, size in booked(server, 1, "down").items() if size and plan.by_id[slot].frozen
    }  # the others in pieces, as the first connection ended
    assert down == {"encoder.embeddings.word_embeddings.weight@sst2": int(altered.name.split("-")[1])}
    for slot in plan.slots:
        assert slot.id in work.received[1]
        if slot.frozen:
            np.testing.assert_array_equal(work.received[1][slot.id], first[slot.id])


async def test_the_api_shows_bytes_by_slot_and_refuses_what_is_frozen(programs: Programs) -> None:
    server = programs.server(ALONE)
    plan = plan_of(server)
    frozen = next(slot for slot in plan.slots if slot.frozen)
    async with peer(server.address) as client, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        await client.introduce("sst2_client", tasks=("sst2",))
        report = DataReport(train=10, validation=4, source="made up")
        # As long as such a list may be, and of nothing that this model has.
        await client.send(Heartbeat(sequence=0))
        await client.send(Ready(tasks={"sst2": report}, held=bytes(KEY_BYTES * MAX_HELD)))
        work = await client.take_work()
        assert not any(header.held for header in work.tensors)
        update = work_done(work, ["sst2"], "sst2_client")
        await client.send_update(replaced(update, encode_tensor(frozen.id, np.zeros(frozen.shape, np.float32))))
        assert (await client.expect(Rejected)).code == "task_not_allowed"
        assert all(header.held for header in (await client.take_work()).tensors), "the round is tried again"
        await client.send_update(update)
        await client.expect(UpdateAck)
        second = await client.take_work()
        assert {header.slot for header in second.tensors if header.held} == {s.id for s in plan.slots if s.frozen}
        one = (await http.get("/api/v1/rounds/1")).json()
        sizes = {slot.id: nbytes(slot) for slot in plan.slots}
        assert one["slots"] == {
            slot.id: {"down": sizes[slot.id], "up": 0 if slot.frozen else sizes[slot.id]} for slot in plan.slots
        }
        assert sum(group["down"] for group in one["groups"].values()) == sum(sizes.values())
        assert [name for name, group in one["groups"].items() if group["up"]] == ["layer.10", "layer.11", "head"]
        rows = (await http.get("/api/v1/rounds", params={"slots": True})).json()
        assert [row["slots"] for row in rows] == [{}, one["slots"]]
        assert [row["groups"] for row in rows] == [{}, one["groups"]]
