"""Payload bytes of every slot, each way, while a round is open: what freezing saves shows here. Pure.

Frames cost a little more than the payloads in them (`server.records.Traffic` has their bytes). Memory: one entry per
slot that travelled since the last round was closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass
class SlotBytes:
    """What one slot's payloads took in one round.

    Attributes:
        group: the blueprint's group of the slot's parameter (``embeddings``, ``layer.3``, ``pooler``, ``head``).
        down: bytes sent to clients; 0 where all of them had the value.
        up: bytes of deltas received, whether they came to count or not.
    """

    group: str
    down: int = 0
    up: int = 0


class SlotTraffic:
    """Counts until the round is closed, then begins anew.

    Args:
        before: what an earlier process has counted in the round that goes on.
    """

    def __init__(self, before: Mapping[str, SlotBytes] | None = None) -> None:
        self._open = {slot: replace(count) for slot, count in (before or {}).items()}

    def sent(self, slot: str, group: str, nbytes: int) -> None:
        """A piece of a slot's value went to a client; 0 bytes where it has all of it."""
        self._of(slot, group).down += nbytes

    def received(self, slot: str, group: str, nbytes: int) -> None:
        """A piece of a slot's delta came from a client."""
        self._of(slot, group).up += nbytes

    def received_before(self, pieces: Iterable[tuple[str, str, int]]) -> None:
        """Deltas (slot, group, bytes) that are there, whoever received them: at least so much came."""
        sums = type(self)()
        for slot, group, nbytes in pieces:
            sums.received(slot, group, nbytes)
        for slot, count in sums.snapshot().items():
            known = self._of(slot, count.group)
            known.up = max(known.up, count.up)

    def snapshot(self) -> dict[str, SlotBytes]:
        """The counts as they stand; may be called from another thread."""
        return {slot: replace(count) for slot, count in list(self._open.items())}

    def take(self) -> dict[str, SlotBytes]:
        """The counts of the round that is closed now."""
        taken, self._open = self._open, {}
        return taken

    def _of(self, slot: str, group: str) -> SlotBytes:
        return self._open.setdefault(slot, SlotBytes(group))


def by_group(slots: Mapping[str, SlotBytes]) -> dict[str, dict[str, int]]:
    """Bytes down and up of each group, in the order of the slots."""
    groups: dict[str, dict[str, int]] = {}
    for count in slots.values():
        group = groups.setdefault(count.group, {"down": 0, "up": 0})
        group["down"] += count.down
        group["up"] += count.up
    return groups


def as_rows(slots: Mapping[str, SlotBytes]) -> dict[str, dict[str, int]]:
    """Slot id to its bytes down and up, as the API shows them."""
    return {slot: {"down": count.down, "up": count.up} for slot, count in slots.items()}
