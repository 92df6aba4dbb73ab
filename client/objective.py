"""What one optimiser step minimises, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.batches import Batch, Indices
from client.device import autocast, to_device
from client.loss import loss_sum, loss_weight
from client.micro_batches import pieces
from client.slot_model import SlotModel
from common.training import TrainSettings

if TYPE_CHECKING:
    from client.trainer import TaskData
    from common.families.base import Family


class Objective:
    """The loss of a batch as a function of the model's parameters.

    Args:
        model: loaded for training.
        family: the tasks.
        data: the client's rows of each task.
        settings: how to train.
    """

    def __init__(self, model: SlotModel, family: Family, data: Mapping[str, TaskData], settings: TrainSettings) -> None:
        self._model = model
        self._family = family
        self._data = data
        self._settings = settings

    def backward(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Leave the gradient of the batch's loss in the parameters that its tasks train; others have none.

        Returns:
            task to its mean loss times its examples, a scalar on the device, and their number.
        """
        left = {task: self._labels(task, rows) for task, rows in batch.rows.items()}
        weights = {task: loss_weight(self._family.tasks[task], labels) for task, labels in left.items()}
        losses: dict[str, Tensor] = {}
        for piece in pieces(batch, self._settings.micro_batch_size):
            for task, rows in piece.rows.items():
                labels, left[task] = left[task][: len(rows)], left[task][len(rows) :]
                self._model.train_only(task)
                loss = self._loss_sum(task, rows, labels) / weights[task]
                torch.autograd.backward(loss)
                losses[task] = losses[task] + loss.detach() if task in losses else loss.detach()
        return {task: (losses[task] * len(rows), len(rows)) for task, rows in batch.rows.items()}

    def _loss_sum(self, task: str, rows: Indices, labels: Tensor) -> Tensor:
        """Sum of the losses of some rows of one task."""
        inputs = to_device(self._data[task].train.collate(rows), self._model.device)
        with autocast(self._model.device, self._settings.precision):
            outputs = self._model.forward(task, inputs)
        return loss_sum(self._family.tasks[task], outputs, labels)

    def _labels(self, task: str, rows: Indices) -> Tensor:
        labels = self._data[task].train.labels[torch.from_numpy(rows)]
        return to_device({"labels": labels}, self._model.device)["labels"]
