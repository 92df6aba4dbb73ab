"""A plan of two tasks small enough to check by hand, its values, and spooled updates of made-up clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.blueprint import Blueprint, ParameterSpec
from common.messages import TaskContribution, UpdateHeader
from common.plan import SharingPlan
from common.stream import StreamReceiver, chunk_frames
from common.torch_tensors import encode
from common.wire import decode_frame
from server.model_state import ModelState
from server.spool import SpooledUpdate, SpoolWriter

TASKS = frozenset({"mood", "topic"})


def _spec(name: str, shape: tuple[int, ...], tasks: frozenset[str], *, fixed: bool = False) -> ParameterSpec:
    return ParameterSpec(name, shape, "float32", tasks, frozenset() if fixed else tasks, "g")


BLUEPRINT = Blueprint(
    "tiny",
    ("mood", "topic"),
    (
        _spec("table", (50, 4), TASKS),
        _spec("body", (3, 5), TASKS),
        _spec("fixed", (2,), TASKS, fixed=True),
        _spec("scalar", (), TASKS),
        _spec("empty", (0, 3), TASKS),
        _spec("head.mood", (7,), frozenset({"mood"})),
        _spec("head.topic", (9,), frozenset({"topic"})),
    ),
)
PLAN = SharingPlan.shared(BLUEPRINT)


def random_values(plan: SharingPlan = PLAN, seed: int = 0) -> dict[str, Tensor]:
    """A value for each slot."""
    numbers = np.random.default_rng(seed)
    return {
        slot.id: torch.from_numpy(numbers.normal(size=slot.shape).astype(np.float32).reshape(slot.shape))
        for slot in plan.slots
    }


def state(plan: SharingPlan = PLAN, version: int = 0, seed: int = 0) -> ModelState:
    """A model of some version."""
    return ModelState(plan, random_values(plan, seed), version)


def spooled(
    folder: Path, client_id: str, round_id: int, deltas: Mapping[str, Tensor], examples: Mapping[str, int]
) -> SpooledUpdate:
    """An update on disk, as if it had come over the wire."""
    tensors = [encode(slot, delta, allow_rows=True) for slot, delta in deltas.items()]
    header = UpdateHeader(
        run_id="run",
        round=round_id,
        version=round_id - 1,
        plan=PLAN.digest,
        stream=1,
        tasks={
            task: TaskContribution(num_examples=count, num_steps=1, loss=0.0, seconds=0.0)
            for task, count in examples.items()
        },
        tensors=tuple(tensor.header for tensor in tensors),
    )
    writer = SpoolWriter(folder, header, client_id)
    receiver = StreamReceiver(1, header.tensors, writer)
    for frame in chunk_frames(1, tensors, 64):
        receiver.accept(decode_frame(frame))  # type: ignore[arg-type]  # a chunk
    return writer.commit()
