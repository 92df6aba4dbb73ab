"""What one optimiser step minimises, and its gradient.

A step minimises the sum over its tasks of weight times mean loss, and what the family adds to it (load balance,
orthogonality): a mean over the examples of the tasks of a pass. Tasks that share the encoder are computed in one pass.
Where each task's gradient must be known by itself (gradient surgery, GradNorm) every task has a pass of its own
instead: as many backward passes through one mixed pass would each cost a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.batches import Batch, Indices
from client.device import autocast, to_device
from client.gate_sums import GateSums
from client.gradnorm import last_shared
from client.joining import join, joinable_groups, places
from client.loss import loss_sum, loss_weight
from client.loss_weights import build_loss_weights
from client.micro_batches import pieces
from client.mixing import passes
from client.surgery import Surgery, combined, inner_products
from common.training import TrainSettings

if TYPE_CHECKING:
    from client.slot_model import SlotModel
    from client.tally import TaskReport
    from client.trainer import TaskData
    from common.families.base import Family


class Objective:
    """The loss of a batch as a function of the model's parameters.

    Args:
        model: loaded for training.
        family: the tasks.
        data: the client's rows of each task.
        settings: how to train.
        tasks: those that the client trains; all of the model's when left out.
        remembered: the client's numbers after its last round, which loss weights go on from.

    Attributes:
        gates: what the model's gates did in all steps so far.
    """

    def __init__(
        self,
        model: SlotModel,
        family: Family,
        data: Mapping[str, TaskData],
        settings: TrainSettings,
        tasks: Sequence[str] | None = None,
        remembered: Mapping[str, float] | None = None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._tasks = {task: family.tasks[task] for task in tasks or model.tasks}
        self._splits = {task: data[task].train for task in self._tasks}
        self._lengths = {task: split.lengths for task, split in self._splits.items()}
        self._grouped: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        self._weights = build_loss_weights(settings, self._tasks, remembered or {}, model.device)
        self._surgery = None if settings.surgery == "none" else Surgery(settings)
        compares = settings.loss_weighting == "gradnorm"
        self.gates = GateSums(model.gates)
        self._measured = last_shared(model.parameter_slots.values(), frozenset(self._tasks)) if compares else ()

    def backward(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Leave the gradient of the batch's loss in the parameters that its tasks train; others have none.

        Returns:
            task to its mean loss, unweighted, times its examples, a scalar on the device, and their number.

        Raises:
            TrainingDiverged: a gradient is not finite (noticed here by gradient surgery only).
        """
        apart = len(batch.rows) > 1 and bool(self._surgery or self._measured)
        losses = self._task_by_task(batch) if apart else self._together(batch)
        return {task: (losses[task] * len(rows), len(rows)) for task, rows in batch.rows.items()}

    def numbers(self, reports: Mapping[str, TaskReport]) -> dict[str, float]:
        """What the loss weights are to remember after the round, given what was done in it."""
        return self._weights.numbers(reports)

    def _together(self, batch: Batch) -> dict[str, Tensor]:
        """One backward pass for all tasks that can share one."""
        divisors, losses = self._divisors(batch), dict[str, Tensor]()
        for group in self._groups(batch):
            rows = {task: batch.rows[task] for task in group}
            whole = sum(map(len, rows.values()))
            self._model.train_only(*group)
            by_length = self._settings.length_buckets and not batch.same_rows
            for portion in passes(rows, self._lengths) if by_length else [rows]:
                for piece in pieces(Batch(portion, batch.same_rows), self._settings.micro_batch_size):
                    found, penalty = self._losses(piece, divisors, whole)
                    weighted = [_times(loss, self._weights.of(task)) for task, loss in found.items()]
                    torch.autograd.backward([*weighted, *penalty])
                    _add(losses, found)
        self._weights.learn(losses, {})
        return losses

    def _task_by_task(self, batch: Batch) -> dict[str, Tensor]:
        """One backward pass per task, with the penalty of its own pass, then all gradients made into one."""
        divisors, losses = self._divisors(batch), dict[str, Tensor]()
        gradients: dict[str, dict[str, Tensor]] = {}
        for task, rows in batch.rows.items():
            self._model.train_only(task)
            for piece in pieces(Batch({task: rows}), self._settings.micro_batch_size):
                found, penalty = self._losses(piece, divisors, len(rows))
                torch.autograd.backward([*found.values(), *penalty])
                _add(losses, found)
            gradients[task] = self._model.take_gradients()
        norms = {
            task: inner_products([of_task], self._measured).sqrt().squeeze()
            for task, of_task in gradients.items()
            if not of_task.keys().isdisjoint(self._measured)
        }
        weighted = [_scaled(of_task, self._weights.of(task)) for task, of_task in gradients.items()]
        self._model.put_gradients(combined(weighted, self._surgery))
        self._weights.learn(losses, norms)
        return losses

    def _losses(
        self, piece: Batch, divisors: Mapping[str, Tensor | float], whole: int
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """What a piece adds to each task's mean loss over the step, and to the penalty if there is one, with its graph.

        Args:
            piece: of tasks of one pass.
            divisors: task to the weight of all its rows in the step.
            whole: the step's examples of these tasks; the penalty is a mean over them, in however many pieces.
        """
        device, rows = self._model.device, piece.rows
        parts, inputs = self._inputs(piece)
        inputs = to_device(inputs, device)
        with autocast(device, self._settings.precision):
            done = self._model.training_pass(parts, inputs)
        self.gates.add(done.gates)
        labels = to_device({task: self._labels(task, indices) for task, indices in rows.items()}, device)
        weights = to_device(self._row_weights(rows), device)
        losses = {
            task: loss_sum(self._tasks[task], done.outputs[task], labels[task], weights.get(task)) / divisors[task]
            for task in rows
        }
        if done.penalty is None or not done.penalty.requires_grad:  # nothing that it depends on is open for training
            return losses, []
        return losses, [done.penalty.float() * (len(piece) / whole)]

    def _inputs(self, piece: Batch) -> tuple[dict[str, slice], dict[str, Tensor]]:
        """Where each task's rows lie in a pass, and the model's inputs."""
        rows = piece.rows
        if len(rows) == 1 or piece.same_rows:
            first, indices = next(iter(rows.items()))
            return dict.fromkeys(rows, slice(None)), self._splits[first].collate(indices)
        return places(rows), join({task: (self._splits[task], indices) for task, indices in rows.items()})

    def _divisors(self, batch: Batch) -> dict[str, Tensor | float]:
        """What each task's sum of losses is divided by: the whole step's weight, in however many pieces it comes."""
        weights = self._row_weights(batch.rows)
        return {task: self._divisor(task, rows, weights.get(task)) for task, rows in batch.rows.items()}

    def _divisor(self, task: str, rows: Indices, weights: Tensor | None) -> Tensor | float:
        if weights is None and self._tasks[task].class_weights is None:
            return float(len(rows))  # which takes no look at the labels
        return loss_weight(self._tasks[task], self._labels(task, rows), weights)

    def _labels(self, task: str, rows: Indices) -> Tensor:
        return self._splits[task].labels[torch.from_numpy(rows)]

    def _row_weights(self, rows: Mapping[str, Indices]) -> dict[str, Tensor]:
        """What each row weighs in its task's loss, of the tasks whose rows do not all weigh 1."""
        weights = {task: self._splits[task].weights for task in rows}
        return {task: every[torch.from_numpy(rows[task])] for task, every in weights.items() if every is not None}

    def _groups(self, batch: Batch) -> list[tuple[str, ...]]:
        """Tasks that are computed in one pass: those that one pass can train, and whose rows fit one batch."""
        tasks = tuple(batch.rows)
        if tasks not in self._grouped:
            trained = self._model.together(tasks)
            self._grouped[tasks] = (
                trained
                if batch.same_rows
                else [
                    group
                    for one_pass in trained
                    for group in joinable_groups({task: self._splits[task] for task in one_pass})
                ]
            )
        return self._grouped[tasks]


def _add(losses: dict[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for task, loss in found.items():
        losses[task] = losses[task] + loss.detach() if task in losses else loss.detach()


def _times(loss: Tensor, weight: Tensor | float) -> Tensor:
    return loss if isinstance(weight, float) and weight == 1 else loss * weight


def _scaled(gradients: dict[str, Tensor], weight: Tensor | float) -> dict[str, Tensor]:
    """The gradients times a weight, in their own memory."""
    return {slot_id: gradient.mul_(weight) for slot_id, gradient in gradients.items()}
