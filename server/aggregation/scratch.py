"""Memory that a thread uses again for block after block: fresh pages would cost more than the work in them."""

from __future__ import annotations

import threading
from typing import Final

import numpy as np

from common.tensors import Array


class _Memory(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}


_memory: Final = _Memory()


def scratch(purpose: str, nbytes: int) -> Array:
    """Bytes of this thread (uint8, not initialised), good until it asks again for the same purpose."""
    buffer = _memory.buffers.get(purpose)
    if buffer is None or buffer.nbytes < nbytes:
        buffer = _memory.buffers[purpose] = np.empty(nbytes, np.uint8)
    return buffer[:nbytes]


def scratch_doubles(purpose: str, count: int) -> Array:
    """`count` float64 elements of this thread."""
    return scratch(purpose, 8 * count).view(np.float64)
