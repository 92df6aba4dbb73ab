"""Values of slots that live on the client alone (FedPer, FedBN, local only) and never travel."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from common.plan import Slot


class Residents:
    """A client's own slots between rounds.

    Values are kept by (parameter, task), not by slot id: when the plan splits, merges or grows, a new slot goes on
    from what one of its tasks had. The values from before the last round are kept too, so a round that is done
    again (its update was lost) starts where it started the first time. Memory: two copies of these slots.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Tensor] = {}
        self._before: dict[tuple[str, str], Tensor] = {}
        self._round = 0

    def find(self, slot: Slot, tasks: frozenset[str], *, redo: int | None = None) -> Tensor | None:
        """The kept value of a slot, None when there is none yet.

        Args:
            slot: the slot wanted.
            tasks: the client's tasks.
            redo: a round about to be trained: when it is the last one kept, the value from before it.
        """
        values = self._before if redo is not None and redo == self._round else self._values
        for task in sorted(slot.tasks & tasks):
            if (value := values.get((slot.parameter, task))) is not None:
                return value
        return None

    def keep(self, number: int, trained: Mapping[Slot, Tensor], started_from: Mapping[Slot, Tensor]) -> None:
        """Take over the values of a finished round.

        Args:
            number: the round.
            trained: slot to its new value, on the CPU, owned from now on.
            started_from: slot to the value the round began with, on the CPU.
        """
        self._before = {**self._values, **_by_task(started_from)}
        self._values |= _by_task(trained)
        self._round = number


def _by_task(values: Mapping[Slot, Tensor]) -> dict[tuple[str, str], Tensor]:
    return {(slot.parameter, task): value for slot, value in values.items() for task in slot.tasks}
