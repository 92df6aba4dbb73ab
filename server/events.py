"""Things that happened, in order: kept in the history and handed to whoever listens now (`/api/v1/events`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

BACKLOG: Final = 256


class EventFeed:
    """Events of one run, published from the event loop.

    Args:
        last: number of the newest event that the history holds.
        record: keeps an event (number, kind, detail) in the history, without holding the event loop.
    """

    def __init__(self, last: int, record: Callable[[int, str, Mapping[str, Any]], None]) -> None:
        self._last = last
        self._record = record
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()

    def publish(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Record an event and pass it on; a listener that reads too slowly misses it and can ask the history."""
        self._last += 1
        self._record(self._last, kind, detail)
        event = {"id": self._last, "kind": kind, **detail}
        for listener in self._listeners:
            if not listener.full():
                listener.put_nowait(event)

    @contextmanager
    def listening(self) -> Iterator[asyncio.Queue[dict[str, Any]]]:
        """A queue of the events from now on; now is when the block is entered."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(BACKLOG)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
