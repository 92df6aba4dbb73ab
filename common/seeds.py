"""Every random choice is drawn from a seed derived from (root seed, path), never from global state.

The path says what the choice is for, such as ``derive_seed(7, "round", 3, "client", "sst2_client")``:
a resumed run asks the same clients, and a restarted client draws the same batches.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(root: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose; different paths give independent streams.

    Args:
        root: the run's seed.
        path: what the seed is for; each part keeps its type, so ``"1"`` and ``1`` differ.
    """
    digest = hashlib.blake2b(repr((root, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derive_random(root: int, *path: str | int) -> random.Random:
    """Python's generator for one purpose."""
    return random.Random(derive_seed(root, *path))  # noqa: S311  # not for secrets


def derive_numpy(root: int, *path: str | int) -> np.random.Generator:
    """Numpy's generator for one purpose."""
    return np.random.default_rng(derive_seed(root, *path))
