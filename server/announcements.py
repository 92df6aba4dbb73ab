"""How many updates each client has announced in the round that is open. Pure."""

from __future__ import annotations


class Announcements:
    """Counts announcements per client; a new round starts from nothing.

    Args:
        per_round: most per client and round.
    """

    def __init__(self, per_round: int) -> None:
        self._most = per_round
        self._round = 0
        self._made: dict[str, int] = {}

    def take(self, client_id: str, round_id: int) -> bool:
        """Count one announcement while `round_id` is open; False when the client has made as many as it may."""
        if round_id != self._round:
            self._round, self._made = round_id, {}
        made = self._made.get(client_id, 0)
        if made >= self._most:
            return False
        self._made[client_id] = made + 1
        return True

    def forgive(self, client_id: str) -> None:
        """The last announcement does not count: the connection broke while its update came."""
        if self._made.get(client_id, 0) > 0:
            self._made[client_id] -= 1
