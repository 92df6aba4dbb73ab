"""What a client remembers from one round to the next, beside the model: values that never travel."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from common.plan import Slot

if TYPE_CHECKING:
    from client.memory_folder import MemoryFolder

log = logging.getLogger("fedmtl.client")


@dataclass(frozen=True)
class Memory:
    """What is remembered after a round, by names that say what it belongs to.

    Attributes:
        tensors: on the CPU; not to be changed in place.
        numbers: plain numbers.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors or self.numbers)


@dataclass(frozen=True)
class Remembered:
    """A memory and what it was made from.

    Attributes:
        memory: what is known after a round.
        start: the round whose memory the round started from; 0 when it started from none, -1 when what it should have
            started from was not kept any more.
    """

    memory: Memory
    start: int = 0


class ClientMemory:
    """The memories of the last two rounds, so that a round done again starts where it started the first time.

    Memory: what two rounds remember, in RAM also where it is on disk.

    Args:
        folder: keeps them on disk too, for a process that takes this one's place; None: in RAM only.

    Raises:
        ConfigError: what the folder holds is damaged, or another client's or run's.
    """

    def __init__(self, folder: MemoryFolder | None = None) -> None:
        self._folder = folder
        self._kept: dict[int, Remembered] = {} if folder is None else folder.load()
        self._on_disk = set(self._kept)

    def latest(self) -> Memory:
        """What is known now."""
        return self._kept[max(self._kept)].memory if self._kept else Memory()

    def before(self, number: int, counted: int | None = None) -> Memory:
        """What was known before a round was trained.

        Args:
            number: the round.
            counted: the newest round of which the server has taken this client's update, 0 for none. Rounds after it
                are in no model, so what was remembered of them does not count either. None: all count.

        A server that lost versions may repeat rounds from further back than is remembered here. Then the oldest memory
        there is stands in, which is logged.
        """
        start = self._start(number, counted)
        if self._lost(number, start):
            oldest = min(self._kept)
            log.warning(
                "round %d is done again, and what was remembered before it is no longer kept: it starts from what was "
                "known after round %d",
                *(number, oldest),
            )
            return self._kept[oldest].memory
        return self._kept[start].memory if start else Memory()

    def keep(self, number: int, memory: Memory, counted: int | None = None) -> bool:
        """Remember after a round; later rounds, if there were any, are forgotten.

        Args:
            number: the round.
            memory: what is known after it.
            counted: as it was for `before`.

        Returns:
            whether all that is remembered outlives this process. Nothing to remember always does.
        """
        start = self._start(number, counted)
        if not memory and not self._kept:
            return True
        kept = {known: self._kept[known] for known in (start,) if known} | {
            number: Remembered(memory, -1 if self._lost(number, start) else start)
        }
        gone, self._kept = self._kept.keys() - kept.keys(), kept
        if self._folder is None:
            return False
        # One that the disk did not take before is tried again: without it this round could not be done again.
        self._on_disk.discard(number)
        self._on_disk |= {known for known in kept.keys() - self._on_disk if self._folder.write(known, kept[known])}
        if kept.keys() <= self._on_disk:
            self._folder.remove(gone & self._on_disk)
            self._on_disk -= gone
        return kept.keys() <= self._on_disk

    def _start(self, number: int, counted: int | None) -> int:
        """The newest round before this one that is remembered and counts; 0 for none."""
        last = number - 1 if counted is None else min(number - 1, counted)
        return max((known for known in self._kept if known <= last), default=0)

    def _lost(self, number: int, start: int) -> bool:
        """Whether this round, or one that follows it here, was trained from a memory that is no longer kept."""
        later = [known for known in self._kept if known >= number]
        return bool(later) and self._kept[min(later)].start != start


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
