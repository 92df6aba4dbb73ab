"""What an aggregator is given and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Delta(Protocol):
    """One client's change of one slot, read in flat ranges of elements so that it need not be in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the dense tensor."""

    def add_to(self, accumulator: Tensor, start: int, weight: float) -> None:
        """``accumulator += weight * delta[start : start + n]``.

        Args:
            accumulator: float64, shape ``(n,)``; changed in place.
            start: first element of the flattened delta.
            weight: factor.
        """

    def read(self, start: int, out: Tensor) -> None:
        """``out = delta[start : start + n]`` with zeros where the delta holds nothing.

        Args:
            start: first element of the flattened delta.
            out: any float type, shape ``(n,)``; overwritten.
        """


@dataclass(frozen=True, slots=True)
class SlotUpdate:
    """What one client contributes to one slot.

    Attributes:
        client_id: who; fixes the order of summation.
        weight: its final factor; the factors of a slot need not sum to 1.
        num_examples: training examples behind it.
        delta: trained value minus received value.
    """

    client_id: str
    weight: float
    num_examples: int
    delta: Delta


class Aggregator(Protocol):
    """Reduces the updates of one slot to its next value, without knowing what the slot is."""

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """The next value: a new tensor of the shape and dtype of `value`, which is left as it is.

        The result depends on the set of updates and not on their order.

        Raises:
            PlanError: no update, a delta of another shape, or a slot that can't be averaged.
        """
