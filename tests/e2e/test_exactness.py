"""What the federation computes is what plain torch computes, and the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from common.data import load_examples
from common.families import build_family
from server.config import resolve_config
from tests.e2e.configs import TASKS, small
from tests.e2e.programs import Programs, Server

LEARNING_RATE = 0.5
ROWS = 48
#: One full-batch step of plain gradient descent per round.
ONE_STEP = {
    "local_steps": 1,
    "batch_size": ROWS,
    "optimizer": "sgd",
    "learning_rate": LEARNING_RATE,
    "head_learning_rate": 1,
    "weight_decay": 0.0,
    "warmup": 0.0,
    "schedule": "constant",
    "max_grad_norm": None,
}


def run_once(programs: Programs, order: tuple[str, ...], name: str) -> Server:
    """A run of one round, its clients started in the given order."""
    config = small(rows=ROWS, run={"rounds": 1}, training=ONE_STEP)
    server = programs.server(config, run_dir=programs.folder / name)
    clients = [programs.client(server, f"{task}_client") for task in order]
    assert [client.wait() for client in clients] == [0, 0, 0]
    assert server.wait() == 0
    return server


def version(run_dir: Path, number: int) -> dict[str, Tensor]:
    """A committed version by parameter name; under the shared plan each parameter has one slot."""
    values = load_file(run_dir / "model" / f"round-{number:05d}.safetensors")
    return {slot.partition("@")[0]: value for slot, value in values.items()}


def gradients(before: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Task to the gradient of its mean loss over all of its training rows, in plain torch."""
    loaded = resolve_config(small(rows=ROWS, training=ONE_STEP), "test", Path())
    family = build_family(loaded.config.model, loaded.specs, base_dir=Path())
    found = {}
    for task, spec in loaded.specs.items():
        model = family.build([task])
        own = {name for name, _ in model.named_parameters()}
        model.load_state_dict({name: before[name] for name in own}, strict=False)
        model.eval()
        examples = load_examples(spec, "train", data=None, shard=None, seed=loaded.config.run.seed)
        rows = family.encode(task, examples)
        outputs = model(task, rows.collate(np.arange(len(rows))))
        assert len(rows) == ROWS
        if spec.kind == "classification":
            loss = -functional.log_softmax(outputs, dim=1)[torch.arange(ROWS), rows.labels].mean()
        else:
            loss = ((outputs - rows.labels) ** 2).mean()
        names, parameters = zip(*model.named_parameters(), strict=True)
        parts: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
        found[task] = {name: part for name, part in zip(names, parts, strict=True) if part is not None}
    return found


def test_a_round_of_one_full_batch_step_each_is_one_central_step(programs: Programs) -> None:
    """The encoder moves by the gradient of the *mean of the task losses*, to 1e-6.

    A head belongs to one task, and within a task the weights of the clients sum to 1. So a head moves by the
    full gradient of its own task's loss, not by a third of it as in a central step on the mean: in a
    central step on the *sum* of the losses heads move the same, and only the encoder's step is scaled by 1/3.
    """
    server = run_once(programs, TASKS, "run")
    before, after = version(server.run_dir, 0), version(server.run_dir, 1)
    slopes = gradients(before)
    moved = 0
    for name, value in before.items():
        parts = [slope[name] for slope in slopes.values() if name in slope]
        share = 1 if name.startswith("heads.") else len(TASKS)
        step = torch.stack(parts).sum(0) / share if parts else torch.zeros_like(value)
        assert name.startswith("encoder.") or len(parts) == 1
        torch.testing.assert_close(after[name], value - LEARNING_RATE * step, rtol=0, atol=1e-6, msg=name)
        moved += bool(step.abs().max() > 1e-4)
    assert moved > len(before) / 2, "the step is too small to tell anything"

    again = run_once(programs, TASKS[::-1], "again")
    assert again.summary()["model"]["sha256"] == server.summary()["model"]["sha256"]
