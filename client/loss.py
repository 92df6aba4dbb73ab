"""The loss of one task's batch: what training minimises and evaluation reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from common.tasks import TaskSpec


def task_loss(task: TaskSpec, outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean loss over a batch, a scalar in float32 whatever the precision of the outputs.

    Args:
        task: names the loss: ``cross_entropy``, or ``mse`` on the labels as they are (no scaling, no sigmoid).
        outputs: ``(B, C)`` logits or ``(B,)`` scores.
        labels: ``(B,)`` class ids or scores, on the device of `outputs`.

    Raises:
        ValueError: shapes do not fit; torch would broadcast ``(B, 1)`` scores against ``(B,)`` labels.
    """
    if task.loss == "cross_entropy":
        return functional.cross_entropy(outputs.float(), labels)
    if outputs.shape != labels.shape:
        raise ValueError(
            f"task {task.name!r}: scores of shape {tuple(outputs.shape)} for labels of {tuple(labels.shape)}"
        )
    return functional.mse_loss(outputs.float(), labels.float())
