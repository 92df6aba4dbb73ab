"""Frozen values between a session's event loop and the disk: one thread, so that there is one call at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

from client.frozen_values import FrozenValues
from client.incoming import IncomingWork
from client.workload import Received
from common.errors import PlanError
from common.messages import Work
from common.plan import Slice
from common.value_key import ValueKey, pack_keys

log = logging.getLogger("fedmtl.client")
P = ParamSpec("P")


class FrozenDisk:
    """What a session asks of the disk about slots whose values never change.

    Args:
        values: the files; None keeps nothing.
    """

    def __init__(self, values: FrozenValues | None) -> None:
        self._values = values
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedmtl-frozen")

    async def listed(self, run_id: str) -> bytes:
        """What is held for a run, for `common.messages.Ready.held`."""
        if self._values is None:
            return b""
        run = asyncio.get_running_loop().run_in_executor
        return pack_keys(await run(self._thread, self._values.listed, run_id))

    async def supply(self, incoming: IncomingWork, work: Work) -> None:
        """Read what a work says is held and the connection has not brought."""
        lacking = incoming.lacking(work)
        if self._values is not None and lacking:
            run = asyncio.get_running_loop().run_in_executor
            found = await run(self._thread, self._values.read, work.run_id, [header.key for header in lacking])
            incoming.provide((header, found[header.key]) for header in lacking if header.key in found)

    def keep(self, work: Work, received: Received) -> None:
        """Write the frozen values of a complete work, later."""
        if self._values is not None:
            self._later(_keep, self._values, work, received)

    def forget_run(self, run_id: str) -> None:
        """Remove, later, what is kept of a run that is over."""
        if self._values is not None:
            self._later(self._values.forget_run, run_id)

    def close(self) -> None:
        """Wait until the disk has everything; blocks."""
        self._thread.shutdown(wait=True)

    def _later(self, function: Callable[P, None], *arguments: P.args, **keywords: P.kwargs) -> None:
        self._thread.submit(function, *arguments, **keywords).add_done_callback(_tell_of_error)


def frozen_values(slice_: Slice, received: Received) -> dict[ValueKey, memoryview]:
    """The payloads of the slots whose values on the server never change: which nobody may train, or clients keep."""
    still = [slot for slot in slice_.slots if slot.residence == "client" or not slot.trained_by]
    headers = [received[slot.id] for slot in still]
    return {header.key: payload for header, payload in headers}


def _keep(values: FrozenValues, work: Work, received: Received) -> None:
    try:
        slice_ = Slice.from_dict(work.slice)
    except PlanError as error:
        log.debug("nothing is kept of a slice that is none: %s", error)  # the worker ends the client for it
        return
    values.keep(work.run_id, frozen_values(slice_, received))


def _tell_of_error(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        log.error("frozen values on disk are not in order", exc_info=error)
