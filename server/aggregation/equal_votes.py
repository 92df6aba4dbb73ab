"""Every client of a slot weighs the same, whatever number of examples it claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from server.aggregation.base import Aggregator, SlotUpdate
from server.aggregation.ordering import total_weight


class EqualVotes:
    """Another aggregator with the sum of a slot's weights dealt out equally to its clients.

    Args:
        inner: finds the centre.
    """

    def __init__(self, inner: Aggregator) -> None:
        self._inner = inner

    def reduce(self, value: Tensor, updates: Sequence[SlotUpdate]) -> Tensor:
        """See `server.aggregation.base.Aggregator`."""
        share = total_weight(updates) / max(1, len(updates))
        return self._inner.reduce(value, [replace(update, weight=share) for update in updates])
