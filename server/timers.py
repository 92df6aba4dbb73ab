"""Named one-shot timers on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Calls `fired(name)` when a timer runs out; a name has one timer at a time."""

    def __init__(self, fired: Callable[[str], None]) -> None:
        self._fired = fired
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def start(self, name: str, seconds: float) -> None:
        """Start a timer, replacing the one of that name."""
        self.cancel(name)
        self._handles[name] = asyncio.get_running_loop().call_later(seconds, self._run_out, name)

    def cancel(self, name: str) -> None:
        """Stop a timer; nothing happens when there is none."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.cancel()

    def cancel_all(self) -> None:
        """Stop every timer."""
        for name in list(self._handles):
            self.cancel(name)

    def _run_out(self, name: str) -> None:
        self._handles.pop(name, None)
        self._fired(name)
