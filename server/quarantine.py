"""Who is left out for a while because its updates were bad too often. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Refusals that speak against the client. The others tell of bad luck: too late, not asked, a disk that is full.
BAD_UPDATES: Final = frozenset(
    {
        "malformed",
        "checksum",
        "out_of_order",
        "too_large",
        "task_not_allowed",
        "unknown_slot",
        "wrong_shape",
        "wrong_dtype",
        "non_finite",
        "norm_outlier",
        "too_many_updates",
    }
)


class QuarantineList:
    """Counts the rounds in which a client sent a bad update, and leaves it out when there are too many.

    Args:
        after: so many rounds with a bad update put a client in quarantine; 0 never does.
        rounds: for how many versions.
    """

    def __init__(self, after: int = 0, rounds: int = 1) -> None:
        self._after = after
        self._rounds = rounds
        self._strikes: dict[str, set[int]] = {}
        self._until: dict[str, int] = {}

    def restore(self, strikes: Iterable[tuple[str, int]], until: Iterable[tuple[str, int]]) -> None:
        """Go on from what a history holds: (client, round) of bad updates, (client, version) of quarantines."""
        for client_id, round_id in strikes:
            self._strikes.setdefault(client_id, set()).add(round_id)
        self._until = {client_id: version for client_id, version in until if version > 0}

    def strike(self, client_id: str, round_id: int, code: str) -> int:
        """Count a refused update, once per round; returns the version that a new quarantine lasts until, else 0."""
        if code not in BAD_UPDATES or not self._after:
            return 0
        rounds = self._strikes.setdefault(client_id, set())
        rounds.add(round_id)
        if len(rounds) < self._after:
            return 0
        # After its time a client starts afresh.
        rounds.clear()
        self._until[client_id] = until = round_id + self._rounds
        return until

    def holds(self, client_id: str, version: int) -> bool:
        """Whether the client is left out of the round that starts from this version."""
        return version < self._until.get(client_id, 0)

    def until(self, client_id: str) -> int:
        """The version before which the client is left out; 0 for one that never was."""
        return self._until.get(client_id, 0)

    def release(self, client_id: str) -> None:
        """Let a client take part again, with a clean sheet."""
        self._until.pop(client_id, None)
        self._strikes.pop(client_id, None)
