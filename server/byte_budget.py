"""Bytes that may be in memory at a time, over all connections: first come, first served. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Claim:
    """A share of a budget, held or waited for.

    Attributes:
        size: bytes.
        granted: it is held; until then what it is for has to wait.
    """

    __slots__ = ("_when_granted", "granted", "size")

    def __init__(self, size: int, when_granted: Callable[[], None]) -> None:
        self.size = size
        self.granted = False
        self._when_granted = when_granted

    def grant(self) -> None:
        """It is held from now on; tells whoever waits."""
        self.granted = True
        self._when_granted()


class ByteBudget:
    """Shares out `total` bytes in the order in which they are asked for.

    A claim larger than all of it is granted when nothing else is held, so that nobody waits for ever.

    Args:
        total: bytes that may be held at a time.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self._waiting: deque[Claim] = deque()

    @property
    def waiting(self) -> int:
        """Claims that wait."""
        return len(self._waiting)

    def claim(self, size: int, when_granted: Callable[[], None]) -> Claim:
        """Ask for `size` bytes.

        Args:
            size: how many.
            when_granted: called once if it had to wait, when it waits no more; must not block or raise.

        Returns:
            the claim; `granted` already when there is room and nobody waits.
        """
        claim = Claim(size, when_granted)
        if not self._waiting and self._fits(claim):
            self.held += size
            claim.granted = True
        else:
            self._waiting.append(claim)
        return claim

    def give_back(self, claim: Claim) -> None:
        """Let a claim go, whether it is held or still waits; harmless twice."""
        if claim.granted:
            claim.granted = False
            self.held -= claim.size
            claim.size = 0
        elif claim in self._waiting:
            self._waiting.remove(claim)
        while self._waiting and self._fits(self._waiting[0]):
            following = self._waiting.popleft()
            self.held += following.size
            following.grant()

    def _fits(self, claim: Claim) -> bool:
        return self.held + claim.size <= self.total or self.held == 0
