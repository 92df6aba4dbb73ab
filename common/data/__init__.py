"""Where labelled rows come from: files, the hub or a generator, checked against the task, limited and sharded.

Importing this imports neither torch nor datasets: reading libraries are loaded when a source needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.data.config import SplitName
from common.data.examples import Column, Examples
from common.data.held_tables import read_once
from common.data.sharding import Shard

if TYPE_CHECKING:
    from common.tasks import TaskSpec

__all__ = ["Column", "Examples", "Shard", "SplitName", "load_examples", "read_once"]


def load_examples(
    task: TaskSpec,
    split: SplitName,
    *,
    data: Path | None,
    shard: Shard | None,
    seed: int,
    columns: Sequence[str] = (),
) -> Examples:
    """The rows of one split that one client holds; see `common.data.load.load_examples`."""
    # Not at the top: `common.tasks` imports this package for the models of its `data` field.
    from common.data import load

    return load.load_examples(task, split, data=data, shard=shard, seed=seed, columns=columns)
