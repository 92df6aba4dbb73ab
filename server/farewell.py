"""The end of a run, as clients are to hear it: those connected, those away for a moment, those of a killed server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from common.messages import Finished


class Farewell:
    """Who still has to hear that the run is over.

    Attributes:
        message: what they are told; None while the run goes on.
        unaware: clients that may wait for it: told by nobody, or without a sign that they heard.
    """

    def __init__(self) -> None:
        self.message: Finished | None = None
        self.unaware: set[str] = set()
        self._changed = asyncio.Event()

    def begin(self, message: Finished, clients: Iterable[str]) -> None:
        """The run is over."""
        self.message = message
        self.unaware = set(clients)

    def heard(self, client_id: str) -> None:
        """This client knows, or does not want to."""
        self.unaware.discard(client_id)
        self._changed.set()

    def give_up(self) -> None:
        """Wait for nobody any more."""
        self.unaware.clear()
        self._changed.set()

    def left(self) -> None:
        """Some connection is closed."""
        self._changed.set()

    async def settle(self, patience_s: float, connected: Callable[[], bool]) -> None:
        """Wait until everybody knows and no client is connected any more, but not for longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self.unaware or connected():
                    self._changed.clear()
                    await self._changed.wait()
