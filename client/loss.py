"""The loss of one task's batch: what training minimises and evaluation reports.

``task_loss = loss_sum / loss_weight``. A batch that is computed in pieces adds up the sums of its pieces and divides by
the weight of the whole, which gives the same gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from common.losses import CosineLoss, CrossEntropyLoss, FocalLoss, HuberLoss, MseLoss

if TYPE_CHECKING:
    from common.tasks import TaskSpec

#: Least distance of a probability from 1 that `focal` tells apart, so that its gradient stays finite for gamma < 1.
_LEAST_DOUBT = 1e-12


def task_loss(task: TaskSpec, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean loss over a batch, a scalar in float32 whatever the precision of the outputs.

    Equal to torch's own mean reduction: with class weights the divisor is the sum of the examples' weights, with label
    smoothing too. Weights of the examples themselves (`TaskSpec.weight`) multiply those of their classes; a batch whose
    weights are all 0 has a loss of 0.

    Args:
        task: names the loss; a regression's is on the labels as they are (no scaling, no sigmoid), but for ``cosine``.
        outputs: ``(B, C)`` logits or ``(B,)`` scores.
        labels: ``(B,)`` class ids or scores, on the device of `outputs`.
        weights: ``(B,)`` float32, what each example weighs; None where all weigh 1.

    Raises:
        ValueError: shapes do not fit; torch would broadcast ``(B, 1)`` scores against ``(B,)`` labels.
    """
    return loss_sum(task, outputs, labels, weights) / loss_weight(task, labels, weights)


def loss_sum(task: TaskSpec, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of the examples' losses, each times its weight and its class's; arguments and errors as for `task_loss`.

    Returns:
        A scalar in float32.
    """
    if task.kind == "regression" and outputs.shape != labels.shape:
        raise ValueError(
            f"task {task.name!r}: scores of shape {tuple(outputs.shape)} for labels of {tuple(labels.shape)}"
        )
    if weights is None:
        return _losses(task, outputs.float(), labels, "sum")
    return (_losses(task, outputs.float(), labels, "none") * weights).sum()


def _losses(task: TaskSpec, outputs: Tensor, labels: Tensor, reduction: Literal["sum", "none"]) -> Tensor:
    """The examples' losses times their classes' weights, ``(B,)``, or their sum, which torch computes at once."""
    match task.loss:
        case CrossEntropyLoss(label_smoothing=smoothing):
            of_class = _class_weights(task, outputs.device)
            return functional.cross_entropy(
                outputs, labels, weight=of_class, reduction=reduction, label_smoothing=smoothing
            )
        case FocalLoss(gamma=gamma):
            losses = _focal(outputs, labels, gamma, _class_weights(task, outputs.device))
            return losses.sum() if reduction == "sum" else losses
        case MseLoss():
            return functional.mse_loss(outputs, labels.float(), reduction=reduction)
        case HuberLoss(delta=delta):
            return functional.huber_loss(outputs, labels.float(), reduction=reduction, delta=delta)
        case CosineLoss():
            # The head's score is lowest + (highest - lowest) * cosine, the label's place in the range likewise.
            assert task.label_range is not None, "TaskSpec sees to it"
            lowest, highest = task.label_range
            return functional.mse_loss(outputs, labels.float(), reduction=reduction) / (highest - lowest) ** 2


def loss_weight(task: TaskSpec, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """What a sum of losses is divided by: the number of examples, or the sum of their weights and their classes'.

    Args:
        task: says the classes' weights.
        labels: ``(B,)``, at least one.
        weights: as for `task_loss`.

    Returns:
        A scalar in float32 on the labels' device, which is not waited for; never 0, as weights may all be.
    """
    of_class = _class_weights(task, labels.device)
    if weights is not None:
        total = weights.sum() if of_class is None else (weights * of_class[labels]).sum()
        return total.clamp_min(torch.finfo(torch.float32).tiny)
    if of_class is None:
        return torch.full((), float(len(labels)), device=labels.device)
    return of_class[labels].sum()


def _focal(logits: Tensor, labels: Tensor, gamma: float, weights: Tensor | None) -> Tensor:
    """``-w (1 - p)^gamma log p``, ``(B,)``, p the probability of the label's class (Lin et al. 2017, equation 5)."""
    log_p = functional.log_softmax(logits, dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    doubt = (-torch.expm1(log_p)).clamp_min(_LEAST_DOUBT)
    losses = -log_p * doubt**gamma
    return losses if weights is None else losses * weights[labels]


def _class_weights(task: TaskSpec, device: torch.device) -> Tensor | None:
    """``(C,)`` on the device, or None."""
    weights = task.class_weights
    return None if weights is None else _on_device(weights, device)


@lru_cache(maxsize=64)
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Moved once: a copy in every step would make the CPU wait for the GPU. Never an inference tensor, as training
    uses what evaluation made."""
    with torch.inference_mode(False):
        return torch.tensor(weights, dtype=torch.float32, device=device)
