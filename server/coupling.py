"""Couplings: what keeps copies of a parameter near each other that tasks have for themselves.

Once a round's updates are averaged, each tie (`common.families.ties`) takes a proximal step on its penalty R, which is
to the penalty what gradient descent is to the losses: ``argmin_V |V - W|^2 / 2 + step * R(V)`` for the matrix W with a
task's flattened copy in each of its T columns. It works for clients of one task, as only the server sees all copies.

* `l2`, ``R = sum_{j<k} |w_j - w_k|^2``: the columns' mean stays, what they differ by is divided by ``1 + 2 T step``:
  mean-regularised multi-task learning.
* `trace_norm`, ``R = |W|_*``: singular values lose `step`, and those below it vanish (Cai, Candes & Shen 2010, arXiv
  0810.3286). With ``W = U S V'`` only V and S are needed, from the T x T eigenproblem of ``W' W``:
  ``W V diag(max(0, 1 - step / s)) V'``.

Every copy moves in every round, those of tasks too whose clients had no part in it: it is nearness to the others that
moves them. A frozen copy pulls on the others and keeps its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from common.errors import ConfigError
from common.families.ties import Tie, TieKind
from common.plan import SharingPlan, Slot

#: Called with the plan of the round and slot id to value for all slots; gives those that the coupling changes.
Couple = Callable[[SharingPlan, Mapping[str, Tensor]], dict[str, Tensor]]


def coupling(ties: Sequence[Tie]) -> Couple | None:
    """The step that these ties take after a round; None: there is none to take."""
    if not ties:
        return None

    def couple(plan: SharingPlan, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        moved: dict[str, Tensor] = {}
        for tie, slots in zip(ties, _tied(ties, plan), strict=True):
            matrix = torch.stack([values[slot.id].flatten().double() for slot in slots], dim=1)
            for slot, column in zip(slots, nearer(matrix, tie.kind, tie.step).unbind(1), strict=True):
                if not slot.frozen:
                    value = values[slot.id]
                    moved[slot.id] = column.to(value.dtype).reshape(value.shape).contiguous()
        return moved

    return couple


def check_ties(ties: Sequence[Tie], plan: SharingPlan, source: str) -> None:
    """Refuse a plan by which the server does not hold what it is to couple.

    Args:
        ties: of the model.
        plan: of the run.
        source: the configuration's file, for the message.

    Raises:
        ConfigError: tied slots live on the clients.
    """
    at_home = [slot.parameter for slots in _tied(ties, plan) for slot in slots if slot.residence == "client"]
    if at_home:
        raise ConfigError(
            f"{source}: federation.resident: {at_home[0]} and others would live on their clients, but model.coupling "
            "has the server keep them near other tasks' copies; leave them out of resident, or set "
            "model.coupling.strength: 0"
        )


def nearer(matrix: Tensor, kind: TieKind, step: float) -> Tensor:
    """The proximal step on a matrix (D, T) of float64, a copy in each column."""
    if kind == "l2":
        mean = matrix.mean(dim=1, keepdim=True)
        return mean + (matrix - mean) / (1 + 2 * matrix.shape[1] * step)
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    kept = (1 - step / squares.clamp_min(1e-300).sqrt()).clamp_min(0)
    thresholded: Tensor = matrix @ (vectors * kept) @ vectors.T
    return thresholded


def _tied(ties: Sequence[Tie], plan: SharingPlan) -> list[list[Slot]]:
    """The slots that each tie ties, in the order of its parameters."""
    slots: dict[str, list[Slot]] = {}
    for slot in plan.slots:
        slots.setdefault(slot.parameter, []).append(slot)
    return [[slot for name in tie.parameters for slot in slots[name]] for tie in ties]
