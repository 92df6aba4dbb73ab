"""Who may stay when more come than there is room for: decisions only, no socket in this file.

A connection is a *stranger* until it has said hello (a client) or completed a request (a visitor of the REST API). Each
of the two has a bound of its own, and beyond it the one that came first leaves in favour of the newcomer: a client says
hello within milliseconds, so a thousand connections that say nothing push out each other. A client that has been
admitted is never pushed out; how many there may be is the federation's matter, which refuses by name.
"""

from __future__ import annotations


class Doorway:
    """Who is inside.

    Args:
        strangers: most connections that have neither said hello nor completed a request.
        visitors: most connections of the REST API.
    """

    def __init__(self, strangers: int, visitors: int) -> None:
        self._most_strangers = strangers
        self._most_visitors = visitors
        # Dictionaries as ordered sets: the oldest first.
        self._strangers: dict[int, None] = {}
        self._visitors: dict[int, None] = {}
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

    def arrived(self, number: int) -> int | None:
        """A connection was opened; returns the one to close in its favour, which counts as gone."""
        self._strangers[number] = None
        return _oldest_beyond(self._strangers, self._most_strangers)

    def asked(self, number: int) -> int | None:
        """A request is complete; returns the connection to close in favour of this one, which counts as gone."""
        if number not in self._strangers:
            return None
        del self._strangers[number]
        self._visitors[number] = None
        return _oldest_beyond(self._visitors, self._most_visitors)

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


def _oldest_beyond(those: dict[int, None], most: int) -> int | None:
    if len(those) <= most:
        return None
    oldest = next(iter(those))
    del those[oldest]
    return oldest
