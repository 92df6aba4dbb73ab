"""What is still to be sent on one connection: short messages first, transfers in between, frame by frame.

Frames of a transfer are built when the socket takes them, so a slow reader costs one frame of memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final

from common.messages import Message
from common.wire import encode_frame

MAX_WAITING: Final = 1024


class OutboxFull(Exception):
    """A peer that takes nothing has made too many messages wait."""


class Outbox:
    """The queue of one connection; filled from the event loop, emptied by its one writer."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._transfers: deque[Iterator[bytes]] = deque()
        self._filled = asyncio.Event()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Messages that have not left yet, transfers not counted."""
        return len(self._messages)

    def put(self, message: Message) -> None:
        """Send a message before anything of a transfer that has not left yet.

        Raises:
            OutboxFull: more than `MAX_WAITING` messages wait.
        """
        if len(self._messages) >= MAX_WAITING:
            raise OutboxFull(f"{MAX_WAITING} messages wait for a peer that reads nothing")
        self._messages.append(encode_frame(message))
        self._filled.set()

    def put_transfer(self, frames: Iterator[bytes], *, replace: bool = False) -> None:
        """Send frames in order after the transfers that wait (or instead of them)."""
        if replace:
            self._transfers.clear()
        self._transfers.append(frames)
        self._filled.set()

    def drop_transfers(self) -> None:
        """Forget what has not left of every transfer."""
        self._transfers.clear()

    def close(self) -> None:
        """Let `next` end with None once everything is sent."""
        self._closed = True
        self._filled.set()

    def _pop(self) -> bytes | None:
        if self._messages:
            return self._messages.popleft()
        while self._transfers:
            frame = next(self._transfers[0], None)
            if frame is not None:
                return frame
            self._transfers.popleft()
        return None

    async def next(self, patience_s: float) -> bytes | None:
        """The next frame to send; None when closed and empty.

        Raises:
            TimeoutError: nothing came for `patience_s` seconds.
        """
        while True:
            frame = self._pop()
            if frame is not None or self._closed:
                return frame
            self._filled.clear()
            async with asyncio.timeout(patience_s):
                await self._filled.wait()
