"""What the gates of a model with experts did in a round, summed on the device over the examples trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.selectors import EXPERT

if TYPE_CHECKING:
    from common.families.base import GateUse
    from common.plan import Slot


@dataclass(frozen=True, slots=True)
class GateReport:
    """What one gate did with one task's examples in a round.

    Attributes:
        experts: blueprint groups of the experts that it weighs.
        mass: for each of them the sum of its weights over the examples; exactly 0 where none was sent to it.
        entropy: of the weights of an example, their mean, in nats.
    """

    experts: tuple[str, ...]
    mass: tuple[float, ...]
    entropy: float


class GateSums:
    """Adds up what passes tell; the device is waited for by `reports` only.

    Args:
        experts: the gates of a task and the experts of each, as `MultiTaskModel.gates` gives them.
    """

    def __init__(self, experts: Callable[[str], Mapping[str, tuple[str, ...]]]) -> None:
        self._experts = experts
        self._sums: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def add(self, gates: Mapping[str, Mapping[str, GateUse]]) -> None:
        """Count a pass, or a part of one: task to gate to what it did with the task's rows."""
        for task, uses in gates.items():
            for gate, use in uses.items():
                known = self._sums.get((task, gate))
                if known is None:
                    self._sums[task, gate] = (_summable(use.mass), _summable(use.entropy))
                else:
                    known[0].add_(use.mass.detach())
                    known[1].add_(use.entropy.detach())

    def reports(self, examples: Mapping[str, int]) -> dict[str, dict[str, GateReport]]:
        """Task to gate to what it did.

        Args:
            examples: task to the examples that were trained on; at least those tasks that passes told of.
        """
        found: dict[str, dict[str, GateReport]] = {}
        for (task, gate), (mass, entropy) in self._sums.items():
            found.setdefault(task, {})[gate] = GateReport(
                self._experts(task)[gate], tuple(mass.tolist()), float(entropy) / examples[task]
            )
        return found


def _summable(value: Tensor) -> Tensor:
    """A copy that many passes can be added to: in float32 equal small terms all round alike, which over some ten
    thousand passes goes beyond what the server allows (`server.gate_checks`). Apple's GPUs have nothing wider."""
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64, copy=True)


def unused(slot: Slot, gates: Mapping[str, Mapping[str, GateReport]]) -> bool:
    """Whether a slot belongs to an expert to which no gate of the tasks that may train it has sent any example.

    Args:
        slot: of any group.
        gates: task to gate to what it did in the round.
    """
    if not slot.spec.group.startswith(EXPERT):
        return False
    masses = [
        report.mass[report.experts.index(slot.spec.group)]
        for task in slot.trained_by & gates.keys()
        for report in gates[task].values()
        if slot.spec.group in report.experts
    ]
    return bool(masses) and not any(masses)
