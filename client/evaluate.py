"""The result of a model on held-out data: outputs over the whole split first, then metrics on all of them."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from client.batches import Indices, by_length
from client.device import autocast, to_device
from client.failures import TrainingCancelled, TrainingDiverged
from client.loss import task_loss
from client.same_rows import kept_once
from client.slot_model import SlotModel
from common.metrics import Evaluation, compute_metrics
from common.training import TrainSettings

if TYPE_CHECKING:
    from common.families.base import EncodedSplit
    from common.tasks import TaskSpec


def evaluate_task(
    model: SlotModel,
    task: TaskSpec,
    split: EncodedSplit,
    settings: TrainSettings,
    cancelled: threading.Event | None = None,
) -> Evaluation:
    """Metrics and mean loss per example of one task over a whole split.

    The mean is weighted where rows have weights (`TaskSpec.weight`); metrics count every row once. They are computed
    once from all outputs, never averaged over batches (which would be wrong for F1 and the correlations). Rows run
    shortest first, so hardly any padding is computed.

    Args:
        model: loaded for evaluation.
        task: its loss and metrics.
        split: at least one example.
        settings: batch size and precision.
        cancelled: checked before every batch.

    Raises:
        TrainingDiverged: outputs, loss or metrics are not finite.
        TrainingCancelled: `cancelled` was set.
    """
    return evaluate_tasks(model, [task], {task.name: split}, settings, cancelled)[task.name]


def evaluate_tasks(
    model: SlotModel,
    tasks: Sequence[TaskSpec],
    splits: Mapping[str, EncodedSplit],
    settings: TrainSettings,
    cancelled: threading.Event | None = None,
) -> dict[str, Evaluation]:
    """As `evaluate_task`, by task: those whose inputs are kept once (`client.same_rows`) in one pass over them.

    Args:
        model: loaded for evaluation.
        tasks: their losses and metrics.
        splits: task to at least one example, for each of `tasks`.
        settings: batch size and precision.
        cancelled: checked before every batch.

    Raises:
        TrainingDiverged: as `evaluate_task`.
        TrainingCancelled: likewise.
    """
    groups: list[list[TaskSpec]] = []
    for task in tasks:
        for group in groups:
            first = group[0].name
            if kept_once(splits[first], splits[task.name]) and model.one_pass_gives(first, task.name):
                group.append(task)
                break
        else:
            groups.append([task])
    found: dict[str, Evaluation] = {}
    for group in groups:
        batches = by_length(splits[group[0].name].lengths, settings.eval_batch_size)
        outputs = _outputs(model, [task.name for task in group], splits[group[0].name], batches, settings, cancelled)
        order = torch.from_numpy(np.concatenate(batches))
        found |= {task.name: _result(task, outputs[task.name], splits[task.name], order) for task in group}
    return {task.name: found[task.name] for task in tasks}


def _outputs(
    model: SlotModel,
    tasks: Sequence[str],
    split: EncodedSplit,
    batches: Sequence[Indices],
    settings: TrainSettings,
    cancelled: threading.Event | None,
) -> dict[str, Tensor]:
    """Task to its outputs for the rows of all batches, in their order, on the CPU."""
    outputs: dict[str, list[Tensor]] = {task: [] for task in tasks}
    with torch.inference_mode(), autocast(model.device, settings.precision):
        for indices in batches:
            if cancelled is not None and cancelled.is_set():
                raise TrainingCancelled(f"evaluation of task {tasks[0]!r} was cancelled")
            inputs = to_device(split.collate(indices), model.device)
            if len(tasks) == 1:
                outputs[tasks[0]].append(model.forward(tasks[0], inputs).float())
                continue
            for task, of_task in model.forward_parts(dict.fromkeys(tasks, slice(None)), inputs).items():
                outputs[task].append(of_task.float())
        return {task: torch.cat(parts).cpu() for task, parts in outputs.items()}


def _result(task: TaskSpec, outputs: Tensor, split: EncodedSplit, order: Tensor) -> Evaluation:
    """What outputs are worth, given for the split's rows in this order."""
    with torch.inference_mode():
        labels = split.labels[order]
        weights = None if split.weights is None else split.weights[order]
        if not bool(torch.isfinite(outputs).all()):
            raise TrainingDiverged(f"the model's outputs for task {task.name!r} are not finite")
        loss = float(task_loss(task, outputs, labels, weights))
        metrics = compute_metrics(task, outputs.numpy(), labels.numpy())
        # Squares of finite outputs may leave the range of a float.
        if not all(map(math.isfinite, (loss, *metrics.values()))):
            raise TrainingDiverged(f"loss or metrics of task {task.name!r} are not finite")
        return Evaluation(metrics, loss, len(split))
