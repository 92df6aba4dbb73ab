"""Conflicting gradients of a client's own tasks made into one, by the methods of torchjd.

Each method turns the tasks' gradients of the parameters that they share into weights, one per task, of which the
step's gradient is the weighted sum. All of them need nothing but the gradients' inner products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.failures import TrainingDiverged
from common.training import SurgeryMethod, TrainSettings

if TYPE_CHECKING:
    from torchjd.aggregation import Weighting
    from torchjd.linalg import PSDMatrix

#: Gradients of one task, by slot id.
Gradients = Mapping[str, Tensor]


class Surgery:
    """One method.

    Args:
        settings: which method, and its parameters.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self._weighting = weighting(settings.surgery, settings.cagrad_c)

    def weights(self, gradients: Sequence[Gradients], slots: Iterable[str]) -> list[float]:
        """The weight of each task's gradient in what they share; waits for the device.

        Args:
            gradients: of each task; a task without a slot's gradient has none there.
            slots: ids of the slots that they share.

        Raises:
            TrainingDiverged: a gradient is not finite.
        """
        gramian = inner_products(gradients, slots).cpu().double()
        if not bool(torch.isfinite(gramian).all()):
            raise TrainingDiverged(
                "a task's gradient is not finite. Lower training.learning_rate, or set training.max_grad_norm."
            )
        weights: list[float] = self._weighting(gramian).tolist()
        return weights


def combined(gradients: Sequence[Gradients], surgery: Surgery | None) -> dict[str, Tensor]:
    """The gradient of a step from those of its tasks, in their memory, which is used up.

    A slot that one task only has a gradient for (a head, a slot of its own) keeps it; the others get the sum of their
    tasks' gradients, weighted by the surgery.

    Args:
        gradients: of each task.
        surgery: None for the plain sum.

    Raises:
        TrainingDiverged: the surgery met a gradient that is not finite.
    """
    holders = Counter(slot_id for of_task in gradients for slot_id in of_task)
    shared = [slot_id for slot_id, tasks in holders.items() if tasks > 1]
    weights = surgery.weights(gradients, shared) if surgery is not None and shared else [1.0] * len(gradients)
    whole: dict[str, Tensor] = {}
    for of_task, weight in zip(gradients, weights, strict=True):
        for slot_id, gradient in of_task.items():
            if weight != 1 and holders[slot_id] > 1:
                gradient.mul_(weight)
            whole[slot_id] = whole[slot_id].add_(gradient) if slot_id in whole else gradient
    return whole


def inner_products(gradients: Sequence[Gradients], slots: Iterable[str]) -> Tensor:
    """``(tasks, tasks)`` float32 on the gradients' device, each pair's inner product over these slots."""
    wanted = list(slots)
    rows = [[torch.empty(())] * len(gradients) for _ in gradients]
    for i, j in combinations_with_replacement(range(len(gradients)), 2):
        one, other = gradients[i], gradients[j]
        products = [torch.dot(one[s].flatten(), other[s].flatten()) for s in wanted if s in one and s in other]
        device = next(iter((*one.values(), *other.values()))).device
        rows[i][j] = rows[j][i] = torch.stack(products).sum() if products else torch.zeros((), device=device)
    return torch.stack([torch.stack(row) for row in rows])


def weighting(method: SurgeryMethod, cagrad_c: float = 0.5) -> Weighting[PSDMatrix]:
    """What turns a matrix of inner products ``(m, m)``, float64 on the CPU, into weights ``(m,)``.

    Scales are torchjd's: where gradients don't conflict, `pcgrad` gives weights 1 and `upgrad` 1/m; `mgda`'s weights
    sum to 1. `pcgrad` draws the order of its projections from torch's stream, which the trainer seeds for the round.
    torchjd's own `upgrad` and `cagrad` need solvers that are not of our licence (quadprog) or large (cvxpy), so their
    small problems are solved with scipy here, to the same answer.

    Raises:
        ValueError: the method is ``none``.
    """
    from torchjd.aggregation import AlignedMTLWeighting, MGDAWeighting, PCGradWeighting, UPGradWeighting

    from client.torchjd_solvers import CAGradWeighting, LeastSquaresProjector

    match method:
        case "pcgrad":
            return PCGradWeighting()
        case "upgrad":
            return UPGradWeighting(projector=LeastSquaresProjector())
        case "cagrad":
            return CAGradWeighting(cagrad_c)
        case "mgda":
            return MGDAWeighting()
        case "aligned_mtl":
            return AlignedMTLWeighting()
        case "none":
            raise ValueError("there is no weighting for surgery 'none'")
