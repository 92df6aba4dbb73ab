"""Clients whose updates are well formed and harmful: outliers are refused by name, repeated ones lead to quarantine."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np

from client.workload import TrainedUpdate
from common.messages import Chunk, Rejected, RoundClosed, UpdateAck
from common.tensors import Array, EncodedTensor, encode_tensor
from server.run_directory import load_version
from tests.e2e.configs import small
from tests.e2e.peers import PATIENCE_S, Peer, events, peer, see_through, session, until, work_done
from tests.e2e.programs import Programs, Server

HONEST = ("sst2_a", "sst2_b", "sst2_c")


def huge(update: TrainedUpdate) -> TrainedUpdate:
    """The same, a thousand times as large."""

    def larger(tensor: EncodedTensor) -> EncodedTensor:
        values: Array = np.frombuffer(b"".join(tensor.parts), np.float32).reshape(tensor.header.shape)
        return encode_tensor(tensor.header.slot, 1000 * values)

    return TrainedUpdate(update.tasks, [larger(tensor) for tensor in update.tensors])


async def clients(server: Server) -> dict[str, dict[str, Any]]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=PATIENCE_S) as http:
        return {row["client_id"]: row for row in (await http.get("/api/v1/clients")).json()}


async def send_huge_updates(mallory: Peer, codes: list[str]) -> None:
    """Answer every round with a huge update, until the server closes; keeps what is said of them."""
    while True:
        await mallory.take_work(skip=(Chunk, RoundClosed, UpdateAck))
        assert mallory.work is not None
        if mallory.work.training is None:
            return
        await mallory.send_update(huge(work_done(mallory.work, ["sst2"], "sst2_mallory")))
        codes.append((await mallory.expect(Rejected, skip=(Chunk, UpdateAck, RoundClosed))).code)


async def test_outliers_do_not_count_and_who_keeps_sending_them_is_left_out(programs: Programs) -> None:
    rules = {
        "min_clients": 4,
        "evaluate": "none",
        "screening": {"max_norm_ratio": 10.0, "quarantine_after": 2, "quarantine_rounds": 2},
    }
    config = small(["sst2"], run={"rounds": 5}, federation=rules)
    calm = programs.server(
        small(["sst2"], run={"rounds": 5}, federation={"min_clients": 3, "evaluate": "none"}),
        run_dir=programs.folder / "calm",
    )
    await see_through(calm, *(session(calm.address, name) for name in HONEST))

    server = programs.server(config)
    feed = events(server.url)
    await until(feed, "status")
    codes: list[str] = []
    async with peer(server.address) as mallory:
        await mallory.join("sst2_mallory")
        bad = asyncio.create_task(send_huge_updates(mallory, codes))
        members = [asyncio.create_task(session(server.address, name).run()) for name in HONEST]
        quarantined = asyncio.create_task(until(feed, "quarantine", client_id="sst2_mallory"))
        await asyncio.wait({bad, quarantined}, return_when=asyncio.FIRST_COMPLETED)
        assert not bad.done() or bad.result() is None
        event = await quarantined
        assert event["until_version"] == 4
        row = (await clients(server))["sst2_mallory"]
        assert row["refusals"] == {"norm_outlier": 2}
        assert row["quarantined_until"] == 4
        assert "times the cohort's median" in row["last_refusal"]
        await see_through(server, *members)
        bad.cancel()
        await asyncio.gather(bad, return_exceptions=True)
    history = server.summary()["history"]
    assert all(row["participants"] == list(HONEST) for row in history[1:])
    # Two rounds with outliers, two in quarantine, and one more chance.
    assert codes == ["norm_outlier"] * 3
    assert server.summary()["model"]["sha256"] == calm.summary()["model"]["sha256"], "as if it had not been there"


async def test_a_robust_aggregator_from_the_configuration_withstands_a_liar(programs: Programs) -> None:
    """One of five sends a huge update; with the mean it is in the model, with the median it is not."""
    largest = {}
    for method in ("weighted_sum", "coordinate_median"):
        rules = {"min_clients": 4, "evaluate": "none", "aggregation": {"use": {"method": method}}}
        server = programs.server(small(["sst2"], run={"rounds": 1}, federation=rules), run_dir=programs.folder / method)
        async with peer(server.address) as mallory:
            await mallory.join("sst2_mallory")
            members = [asyncio.create_task(session(server.address, name).run()) for name in HONEST]
            await mallory.take_work()
            assert mallory.work is not None
            await mallory.send_update(huge(work_done(mallory.work, ["sst2"], "sst2_mallory")))
            await mallory.expect(UpdateAck)
            await see_through(server, *members)
        before, after = (load_version(server.run_dir / "model" / f"round-0000{n}.safetensors").values for n in (0, 1))
        largest[method] = max(float((after[slot] - before[slot]).abs().max()) for slot in after)
    assert largest["weighted_sum"] > 0.5
    assert largest["coordinate_median"] < 0.01
