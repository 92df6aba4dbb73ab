"""Families whose federation is more than averaging: coupled columns, columns in sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from server.model_state import ModelState
from server.run_directory import load_version
from tests.e2e.peers import see_through, session, small_delta
from tests.e2e.programs import Programs
from tests.e2e.test_experts import federation_of


async def versions(programs: Programs, folder: Path, rounds: int, **changes: Any) -> list[ModelState]:  # noqa: ANN401  # YAML
    """The versions that a client of each task makes with deltas that are made up."""
    config = federation_of(folder)
    inputs = {"numeric": config["model"]["numeric"], "column": [4], "tower": []}
    config["federation"]["min_clients"], config["run"]["rounds"] = 2, rounds
    config |= {**changes, "model": {**inputs, **changes["model"]}}
    server = programs.server(config)
    await see_through(server, *(session(server.address, task) for task in ("rich", "old")))
    return [load_version(path) for path in sorted((server.run_dir / "model").glob("round-*.safetensors"))]


async def test_clients_of_one_task_each_have_their_columns_coupled_by_the_server(
    programs: Programs, tmp_path: Path
) -> None:
    """A step of 0.25 with two tasks halves what their columns differ by, and leaves their mean."""
    model = {"family": "soft_sharing", "coupling": {"kind": "l2", "strength": 0.5, "round_step": 0.5}}
    before, after = await versions(programs, tmp_path, 1, model=model)
    averaged = {
        slot.id: before.values[slot.id] + torch.from_numpy(small_delta(slot, min(slot.tasks), 1))
        for slot in before.plan.slots
    }
    for part in ("weight", "bias"):
        rich, old = (f"columns.{task}.layers.0.{part}@{task}" for task in ("rich", "old"))
        apart = averaged[rich] - averaged[old]
        torch.testing.assert_close(after.values[rich], averaged[rich] - apart / 4)
        torch.testing.assert_close(after.values[old], averaged[old] + apart / 4)
    tower = "heads.rich.output.weight@rich"
    torch.testing.assert_close(after.values[tower], averaged[tower])


async def test_progressive_columns_are_trained_one_after_the_other(programs: Programs, tmp_path: Path) -> None:
    stages = [{"from_round": 1, "until_round": 1, "open": "own:old"}, {"from_round": 2, "open": "own:rich"}]
    model = {"family": "progressive", "adapter": 2}
    states = await versions(programs, tmp_path, 2, model=model, freezing={"schedule": stages})
    for before, after, task in zip(states[:-1], states[1:], ("old", "rich"), strict=True):
        moved = {s.id for s in before.plan.slots if not torch.equal(before.values[s.id], after.values[s.id])}
        assert moved == {slot.id for slot in before.plan.slots if slot.spec.trained_by == {task}}
