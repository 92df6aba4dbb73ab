"""Tests of the server run on the loop that the server runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from common.event_loop import loop_factory


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop where there is one."""
    return {"loop": loop_factory() or asyncio.new_event_loop}
