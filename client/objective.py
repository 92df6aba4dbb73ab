"""What one optimiser step minimises, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.batches import Batch, Indices
from client.device import autocast, to_device
from client.loss import task_loss
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
            task to the sum of its examples' losses, a scalar on the device, and their number.
        """
        (task,) = batch.rows
        rows = batch.rows[task]
        self._model.train_only(task)
        loss = self._loss(task, rows)
        torch.autograd.backward(loss)
        return {task: (loss.detach() * len(rows), len(rows))}

    def _loss(self, task: str, rows: Indices) -> Tensor:
        """Mean loss of some rows of one task."""
        split, device = self._data[task].train, self._model.device
        inputs = to_device(split.collate(rows), device)
        target = to_device({"labels": split.labels[torch.from_numpy(rows)]}, device)
        with autocast(device, self._settings.precision):
            outputs = self._model.forward(task, inputs)
        return task_loss(self._family.tasks[task], outputs, target["labels"])
