"""The result of a model on held-out data: outputs over the whole split first, then metrics on all of them."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.batches import by_length
from client.device import autocast, to_device
from client.failures import TrainingCancelled, TrainingDiverged
from client.loss import task_loss
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
    batches = by_length(split.lengths, settings.eval_batch_size)
    outputs = []
    with torch.inference_mode(), autocast(model.device, settings.precision):
        for indices in batches:
            if cancelled is not None and cancelled.is_set():
                raise TrainingCancelled(f"evaluation of task {task.name!r} was cancelled")
            inputs = to_device(split.collate(indices), model.device)
            outputs.append(model.forward(task.name, inputs).float())
    with torch.inference_mode():
        gathered = torch.cat(outputs).cpu()
        order = torch.from_numpy(np.concatenate(batches))
        labels = split.labels[order]
        weights = None if split.weights is None else split.weights[order]
        if not bool(torch.isfinite(gathered).all()):
            raise TrainingDiverged(f"the model's outputs for task {task.name!r} are not finite")
        loss = float(task_loss(task, gathered, labels, weights))
        metrics = compute_metrics(task, gathered.numpy(), labels.numpy())
        # Squares of finite outputs may leave the range of a float.
        if not all(map(math.isfinite, (loss, *metrics.values()))):
            raise TrainingDiverged(f"loss or metrics of task {task.name!r} are not finite")
        return Evaluation(metrics, loss, len(split))
