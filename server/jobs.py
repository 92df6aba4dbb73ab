"""Work beside the loop of a run: nobody waits for it one by one, but all of it is waited for, and no error is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from server.lane import NoRoom

log = logging.getLogger("fedmtl.server")


class Jobs:
    """Tasks of one run.

    Args:
        failed: called with the first error; the run can't go on after it.

    Attributes:
        failure: that error in words; empty while there is none.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failure = ""

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do this beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def settle(self) -> None:
        """Wait until all of it is done."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, NoRoom):
            log.warning("something was not written down: %s", error)
            return
        log.error("the run cannot go on: %s", error, exc_info=error)
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The run can't go on, for this reason."""
        if not self.failure:
            self.failure = f"{type(error).__name__}: {error}"
            self._failed(self.failure)
