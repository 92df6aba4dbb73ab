"""Federated methods with real processes: what stays on clients, control variates."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from common.control_variates import is_control
from common.errors import ConfigError
from common.messages import Chunk, EvaluationReport, Rejected, UpdateAck
from common.plan import Slice
from common.selectors import is_norm
from common.tensors import encode_tensor
from server.export_run import export_run
from server.run_directory import load_version
from tests.e2e.configs import small
from tests.e2e.peers import evaluation, peer, replaced, small_delta, work_done
from tests.e2e.programs import Programs, Server

SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "head_learning_rate": 1,
    "weight_decay": 0.0,
    "warmup": 0.0,
    "schedule": "constant",
    "max_grad_norm": None,
}


def version(server: Server, number: int) -> Any:  # noqa: ANN401  # a model
    return load_version(server.run_dir / "model" / f"round-{number:05d}.safetensors")


async def test_norms_cross_the_wire_once_and_are_trained_where_they_live(programs: Programs) -> None:
    """FedBN: a real client trains beside a bare one that sees what the server sends and takes."""
    rules = {"min_clients": 2, "resident": ["norms"], "evaluate": "cohort", "rejoin_grace_s": 0.0}
    config = small(["sst2", "qqp"], federation=rules)
    server = programs.server(config)
    real = programs.client(server, "sst2_client")
    async with peer(server.address) as bare:
        await bare.join("qqp_client")
        for number in (1, 2):
            work = await bare.take_work(skip=(Chunk, UpdateAck))
            slots = Slice.from_dict(work.slice).slots
            at_home = {slot.id for slot in slots if slot.residence == "client"}
            assert at_home == {slot.id for slot in slots if is_norm(slot.parameter)}
            sent = {header.slot for header in work.tensors if not header.held}
            assert at_home <= sent if number == 1 else not at_home & sent
            assert bare.welcome is not None
            if work.evaluate:
                results = {"qqp": evaluation(bare.welcome, "qqp", 0.5)}
                await bare.send(EvaluationReport(round=work.round, version=work.version, tasks=results))
            update = work_done(work, ["qqp"], "qqp_client")
            if number == 1:
                await bare.send_update(update)
                await bare.expect(UpdateAck)
        slot = next(slot for slot in slots if slot.id in at_home)
        theirs = encode_tensor(slot.id, small_delta(slot, "qqp_client", 1))
        await bare.send_update(replaced(update, theirs))
        assert (await bare.expect(Rejected)).reason == f"slot {slot.id!r} lives on its clients"
    assert [await asyncio.to_thread(program.wait) for program in (real, server)] == [0, 0]
    first, last = version(server, 0), version(server, 2)
    moved = {slot_id for slot_id in first.values if not torch.equal(first.values[slot_id], last.values[slot_id])}
    assert moved
    assert not moved & at_home
    with pytest.raises(ConfigError, match=r"live on its clients .* --first-values"):
        export_run(server.run_dir, "sst2", programs.folder / "out")
    assert export_run(server.run_dir, "sst2", programs.folder / "out", first_values=True).native is False


def test_clients_that_keep_everything_train_alone(programs: Programs) -> None:
    """The baseline without any federation, under the same server: only counts and metrics travel."""
    alone = small(["sst2", "qqp"], federation={"min_clients": 2, "resident": ["everything"]}, training=SGD)
    server = programs.server(alone)
    clients = [programs.client(server, client_id) for client_id in ("sst2_client", "qqp_client")]
    assert [program.wait() for program in (*clients, server)] == [0, 0, 0]
    before, *_, after = server.summary()["history"]
    assert all(after["tasks"][task]["loss"] != before["tasks"][task]["loss"] for task in ("sst2", "qqp"))
    first, last = version(server, 0), version(server, 2)
    assert all(torch.equal(first.values[slot_id], last.values[slot_id]) for slot_id in first.values)


def test_scaffolds_control_variates_are_the_mean_of_the_clients_gradients(programs: Programs) -> None:
    config = small(["sst2", "qqp"], federation={"min_clients": 2, "correction": "scaffold"}, training=SGD)
    server = programs.server(config)
    clients = [programs.client(server, client_id) for client_id in ("sst2_client", "qqp_client")]
    assert [program.wait() for program in (*clients, server)] == [0, 0, 0]
    start, one = version(server, 0), version(server, 1)
    controls = [slot for slot in start.plan.slots if is_control(slot.spec)]
    assert len(controls) * 2 == len(start.plan.slots)
    for control in controls:
        assert not start.values[control.id].any()
        slot_id = control.id.replace("#control", "")
        # Both took two steps of 0.1, all with the mean of their own gradients.
        way = start.values[slot_id] - one.values[slot_id]
        torch.testing.assert_close(one.values[control.id], way / 0.2, rtol=1e-3, atol=2e-6)
    report = export_run(server.run_dir, "sst2", programs.folder / "out")
    assert report.task == "sst2"
    assert {path.name for path in programs.state_dir.rglob("*") if path.is_file()} == {".lock"}, "the run is over"
