"""The event loop that both programs run on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def loop_factory() -> Callable[[], Any] | None:
    """uvloop's loop for `asyncio.Runner`, or None (asyncio's own) on Windows, where there is no uvloop."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
