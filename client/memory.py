"""What a client remembers from one round to the next, beside the model: values that never travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from common.plan import Slot


@dataclass(frozen=True)
class Memory:
    """What is remembered after a round, by names that say what it belongs to.

    Attributes:
        tensors: on the CPU; not to be changed in place.
        numbers: plain numbers.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class ClientMemory:
    """The memories of the last two rounds, so that a round done again starts where it started the first time."""

    def __init__(self) -> None:
        self._kept: dict[int, Memory] = {}

    def latest(self) -> Memory:
        """What is known now."""
        return self._kept[max(self._kept)] if self._kept else Memory()

    def before(self, number: int) -> Memory:
        """What was known before a round was trained."""
        earlier = [known for known in self._kept if known < number]
        return self._kept[max(earlier)] if earlier else Memory()

    def keep(self, number: int, memory: Memory) -> None:
        """Remember after a round; later rounds, if there were any, are forgotten."""
        earlier = sorted(known for known in self._kept if known < number)[-1:]
        self._kept = {known: self._kept[known] for known in earlier} | {number: memory}


def resident(memory: Memory, slot: Slot, tasks: frozenset[str]) -> Tensor | None:
    """The remembered value of a slot that lives on the client, None when there is none yet.

    Values are kept by (parameter, task), not by slot id: when the plan splits, merges or grows, a new slot goes on
    from what one of its tasks had.
    """
    for task in sorted(slot.tasks & tasks):
        if (value := memory.tensors.get(_resident_name(slot, task))) is not None:
            return value
    return None


def residents(values: Mapping[Slot, Tensor]) -> dict[str, Tensor]:
    """Values of slots that live on the client, as `resident` finds them."""
    return {_resident_name(slot, task): value for slot, value in values.items() for task in slot.tasks}


def _resident_name(slot: Slot, task: str) -> str:
    return f"resident:{slot.parameter}@{task}"
