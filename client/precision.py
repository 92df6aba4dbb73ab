"""What ``precision: auto`` stands for on this machine: bf16 where it is clearly faster with this model and data.

Whether bfloat16 pays depends on the processor's instructions and on the size of the matrices: for a small encoder the
conversions eat what the products gain. So both are timed, in turn, on a few of the client's own batches. The choice
depends on the clock, and is logged.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch

from client.device import autocast, to_device
from client.loss import task_loss
from client.slot_model import SlotModel

if TYPE_CHECKING:
    from common.families.base import EncodedSplit
    from common.tasks import TaskSpec

log = logging.getLogger("fedmtl.client")

#: Steps of each kind that are timed, after one of each that is not.
TURNS: Final = 5
#: bf16 is taken when its median step is at most this part of fp32's: a gain within the noise is none.
CLEARLY: Final = 0.9


def faster_precision(model: SlotModel, task: TaskSpec, split: EncodedSplit, batch_size: int) -> Literal["fp32", "bf16"]:
    """Time forward and backward passes in both precisions.

    Args:
        model: loaded for training; its gradients are cleared, its buffers may move. Load it again afterwards.
        task: whose loss.
        split: rows; those of medium length are taken.
        batch_size: examples per batch.
    """
    device = model.device
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp32"
    order = np.argsort(split.lengths, kind="stable")
    first = max(0, (len(order) - batch_size) // 2)
    rows = order[first : first + batch_size]
    inputs = to_device(split.collate(rows), device)
    labels = split.labels[torch.from_numpy(rows)].to(device)
    model.train_only(task.name)

    def step(precision: Literal["fp32", "bf16"]) -> float:
        _wait(device)
        began = time.perf_counter()
        with autocast(device, precision):
            outputs = model.forward(task.name, inputs)
        torch.autograd.backward(task_loss(task, outputs, labels))
        _wait(device)
        taken = time.perf_counter() - began
        model.clear_gradients()
        return taken

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        pairs = [(step("fp32"), step("bf16")) for _ in range(TURNS + 1)][1:]
    plain, short = (statistics.median(taken) for taken in zip(*pairs, strict=True))
    chosen: Literal["fp32", "bf16"] = "bf16" if short <= CLEARLY * plain else "fp32"
    log.info(
        "precision auto: a step of task %s takes %.1f ms in fp32 and %.1f ms in bf16; %s is used from here on",
        *(task.name, 1000 * plain, 1000 * short, chosen),
    )
    return chosen


def _wait(device: torch.device) -> None:
    """CUDA computes behind the host's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
