"""Who may stay when more come than there is room for: decisions only, no socket in this file.

A connection is a *stranger* until it has said hello (a client) or completed a request (a visitor of the REST API). Each
of the two has a bound of its own, and beyond it one leaves in favour of the newcomer: of the address that has most of
them the one that came first. A client says hello within milliseconds, so a thousand connections that say nothing push
out each other. A client that has been admitted is never pushed out; how many there may be is the federation's matter,
which refuses by name.
"""

from __future__ import annotations

from collections import Counter


class Doorway:
    """Who is inside.

    Args:
        strangers: most connections that have neither said hello nor completed a request.
        visitors: most connections of the REST API.
    """

    def __init__(self, strangers: int, visitors: int) -> None:
        self._most_strangers = strangers
        self._most_visitors = visitors
        # Number to address, the oldest first.
        self._strangers: dict[int, str] = {}
        self._visitors: dict[int, str] = {}
        self._clients: set[int] = set()

    @property
    def strangers(self) -> int:
        """How many have neither said hello nor completed a request."""
        return len(self._strangers)

    @property
    def visitors(self) -> int:
        """How many have completed a request."""
        return len(self._visitors)

    @property
    def clients(self) -> int:
        """How many have been admitted."""
        return len(self._clients)

    def arrived(self, number: int, address: str) -> int | None:
        """A connection was opened; returns the one to close in its favour, which counts as gone."""
        self._strangers[number] = address
        return _one_too_many(self._strangers, self._most_strangers)

    def asked(self, number: int) -> int | None:
        """A request is complete; returns the connection to close in favour of this one, which counts as gone."""
        if number not in self._strangers:
            return None
        self._visitors[number] = self._strangers.pop(number)
        return _one_too_many(self._visitors, self._most_visitors)

    def admitted(self, number: int) -> None:
        """A hello was accepted. One that was told to leave just before does not come back by it."""
        if number in self._strangers or number in self._visitors:
            self.gone(number)
            self._clients.add(number)

    def gone(self, number: int) -> None:
        """A connection is closed; harmless twice."""
        self._strangers.pop(number, None)
        self._visitors.pop(number, None)
        self._clients.discard(number)


def _one_too_many(those: dict[int, str], most: int) -> int | None:
    """Take one out if they are more than `most`."""
    if len(those) <= most:
        return None
    ((crowd, _),) = Counter(those.values()).most_common(1)
    oldest = next(number for number, address in those.items() if address == crowd)
    del those[oldest]
    return oldest
