"""Dividing rows among the clients of one task: pure functions from seed and labels to row positions.

Every scheme is a partition: the shards of all clients are disjoint and together all rows, provided that
all clients see the same rows and the same seed. Positions are in ascending order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataError
from common.seeds import derive_numpy

Positions = NDArray[np.int64]

#: Draws of Dirichlet proportions before giving up on leaving no shard empty.
ATTEMPTS: Final = 100
#: Regression scores are divided at their deciles.
BINS: Final = 10


@dataclass(frozen=True, order=True)
class Shard:
    """Which of `count` shards a client holds; ``0/3`` on the command line."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shard {self.index}/{self.count}: the index must be 0 to {self.count - 1}, as in 0/3")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of `str`; raises `ConfigError` on anything but ``INDEX/COUNT``."""
        if not (match := re.fullmatch(r"(\d+)/(\d+)", text)):
            raise ConfigError(f"shard {text!r}: write INDEX/COUNT, as in 0/3 for the first of three")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def iid(rows: int, shard: Shard, seed: int) -> Positions:
    """Evenly at random; sizes differ by at most one. Fewer rows than shards give an empty shard."""
    order = derive_numpy(seed, "iid").permutation(rows)
    return np.sort(order[shard.index :: shard.count])


def dirichlet(labels: NDArray[np.int64], shard: Shard, alpha: float, seed: int) -> Positions:
    """Each label's rows in proportions drawn from Dirichlet(alpha), as in Hsu et al., 2019 (arXiv:1909.06335).

    Proportions are drawn again, up to 100 times, until no shard is empty.

    Args:
        labels: class (or bin) of each row, shape (N,).
        alpha: small gives each shard few labels; large approaches `iid`.

    Raises:
        DataError: no draw left every shard a row.
    """
    random = derive_numpy(seed, "dirichlet")
    for _ in range(ATTEMPTS):
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = random.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(random.dirichlet(np.full(shard.count, alpha)))[:-1]
            cuts = np.minimum(np.round(ends * len(members)), len(members)).astype(np.int64)
            for index, part in enumerate(np.split(members, cuts)):
                owner[part] = index
        if len(np.unique(owner)) == shard.count:
            return np.flatnonzero(owner == shard.index)
    raise DataError(
        f"{len(labels):,} rows could not be divided into {shard.count} shards by label with alpha {alpha} so that none "
        "is empty; use a larger `sharding.alpha`, fewer shards or more rows"
    )


def by_value(values: Sequence[object], shard: Shard) -> Positions:
    """All rows with one value in one shard; the largest groups first, each to the smallest shard so far.

    Raises:
        DataError: there are fewer values than shards.
    """
    groups: dict[str, list[int]] = {}
    for position, value in enumerate(values):
        groups.setdefault(str(value), []).append(position)
    if len(groups) < shard.count:
        raise DataError(f"{len(groups)} distinct values cannot be divided into {shard.count} shards")
    parts: list[list[int]] = [[] for _ in range(shard.count)]
    for value in sorted(groups, key=lambda value: (-len(groups[value]), value)):
        min(parts, key=len).extend(groups[value])
    return np.sort(np.array(parts[shard.index], dtype=np.int64))


def score_bins(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The decile of each score, shape (N,): what Dirichlet sharding takes for a label in regression."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right").astype(np.int64)


def held_out(rows: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True where a row belongs to the validation split, shape (rows,): a seeded sample.

    At least one row is held out and one is left.

    Raises:
        DataError: there are fewer than two rows.
    """
    if rows < 2:
        raise DataError(f"{rows} row cannot be divided into training and validation rows")
    count = min(max(1, round(rows * fraction)), rows - 1)
    mask = np.zeros(rows, dtype=np.bool_)
    mask[derive_numpy(seed, "validation").permutation(rows)[:count]] = True
    return mask


def sample(rows: int, limit: int, seed: int) -> Positions:
    """A seeded sample; the rows for a smaller limit are among those for a larger one."""
    return np.sort(derive_numpy(seed, "limit").permutation(rows)[:limit])
