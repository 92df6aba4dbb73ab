"""The one worker thread in which model, files and history are touched in order, and what happens when the disk is full.

A write that finds no room is not lost and does not end the run: it waits until there is room and is done again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from safetensors import SafetensorError

Result = TypeVar("Result")
#: Seconds between two looks whether there is room again.
PROBE_S: Final = 1.0
#: Room that must be there beside what did not fit.
SPARE_BYTES: Final = 1 << 20
#: More than this is not asked for before a write is tried again.
MOST_WANTED_BYTES: Final = 1 << 33
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(Exception):
    """A write was given up because the server stops while its disk is full."""


def no_room(error: BaseException) -> str | None:
    """What to tell the operator when an error means that the disk (or a quota) is full; None for any other error."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return error.strerror or "no space left on device"
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        # The second: the memory-mapped index of the write-ahead log could not grow.
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
            return str(error)
    # Their library hands the system's error on as text.
    if isinstance(error, SafetensorError) and any(f"(os error {number})" in str(error) for number in _NO_ROOM):
        return "no space left on device"
    return None


class Lane:
    """Runs blocking work in order; see the module.

    Args:
        folder: lies on the disk in question.
        full: called on the event loop with what is wrong when the disk turns out to be full.
        roomy: called on the event loop when there is room again.
    """

    def __init__(self, folder: Path, full: Callable[[str], None], roomy: Callable[[], None]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedmtl-lane")
        self._folder = folder
        self._full = full
        self._roomy = roomy
        self._room = asyncio.Event()
        self._room.set()
        #: What is wrong with the disk; empty when nothing is.
        self.trouble = ""
        self._wanted = 0
        self._watch: asyncio.Task[None] | None = None
        self._closing = False
        #: Pieces of work that wait for the thread or are in it.
        self.waiting = 0

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401  # passed on
        """Do the work in the thread; whatever it raises is raised here."""
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        finally:
            self.waiting -= 1

    async def write(self, work: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401  # passed on
        """Do work that writes, again and again while there is no room: it must bear being done twice.

        Raises:
            NoRoom: there was none until `stop_waiting`.
        """
        wanted = SPARE_BYTES
        while True:
            try:
                return await self.run(work, *arguments)
            except (OSError, sqlite3.Error, SafetensorError) as error:
                reason = no_room(error)
                if reason is None:
                    raise
                if self._closing:
                    raise NoRoom(reason) from error
                # How much it needs nobody knows: more than there was room for the last time.
                self.out_of_room(reason, wanted)
                wanted = min(2 * wanted, MOST_WANTED_BYTES)
            await self._room.wait()

    def out_of_room(self, reason: str, wanted: int) -> None:
        """A write of so many bytes found no room: look for it until it is there."""
        self._wanted = max(self._wanted, wanted)
        if self._room.is_set() and not self._closing:
            self._room.clear()
            self.trouble = reason
            self._full(reason)
            self._watch = asyncio.get_running_loop().create_task(self._await_room())

    async def _await_room(self) -> None:
        loop = asyncio.get_running_loop()
        # Not in the lane: reading work goes on there.
        await asyncio.sleep(PROBE_S)  # a disk that is full by a hair: not round and round without a breath
        while not await loop.run_in_executor(None, has_room, self._folder, self._wanted + SPARE_BYTES):  # noqa: ASYNC110
            await asyncio.sleep(PROBE_S)  # a disk tells nobody when there is room
        self._wanted = 0
        self.trouble = ""
        self._room.set()
        self._roomy()

    def stop_waiting(self) -> None:
        """The server stops: what finds no room is given up."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        self._room.set()

    def close(self) -> None:
        """Let the thread go when its work is done."""
        self.stop_waiting()
        self._thread.shutdown()


def has_room(folder: Path, nbytes: int) -> bool:
    """Whether a file of so many bytes fits."""
    probe = folder / ".room"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        finally:
            os.close(descriptor)
            probe.unlink(missing_ok=True)
    except OSError:
        return False
    return True
