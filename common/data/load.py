"""From a task to checked examples: read, check, divide. The one way by which rows enter a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.data import sharding
from common.data.checks import check_feature, check_labels, check_text, check_weights
from common.data.config import DataSource, FilesSource, Sharding, SplitName
from common.data.examples import Column, Examples
from common.data.locate import divided_split, locate, read_split
from common.data.sharding import Positions, Shard
from common.errors import DataError
from common.seeds import derive_seed
from common.tasks import TaskSpec


def load_examples(
    task: TaskSpec,
    split: SplitName,
    *,
    data: Path | None,
    shard: Shard | None,
    seed: int,
    columns: Sequence[str] = (),
) -> Examples:
    """The rows of one split that one client holds.

    In this order: every row of the table is read and checked; a validation fraction is held out (of
    the training rows, or of the test rows with `validation_from: test`); the row limit is applied;
    this client's shard is taken. So all shards of a task are disjoint, together they are the limited
    split, and no row is in two splits, provided that the clients read the same rows with the same
    seed. Training rows are divided by the task's `sharding`; validation and test rows always evenly
    at random, so that each row counts once in a mean over clients weighted by examples, and every
    client measures on the same mixture.

    Args:
        data: the client's ``--data``, see `common.data.locate.locate`.
        shard: this client's part; None for all rows.
        seed: the run's seed (`data.seed` of the task takes its place).
        columns: feature columns wanted beside the task's text columns.

    Raises:
        DataError: the rows cannot be had or do not fit the task; names source, rows, what was found and
            what is allowed.
    """
    origin = locate(task, data)
    # Not by task name: tasks over one file (two labels of the same people) hold out the same rows.
    seed = derive_seed(seed if origin.seed is None else origin.seed, "data")
    scheme = origin.sharding if shard is not None and split == "train" else Sharding()
    examples, values = _read_checked(task, origin, split, columns, scheme.column, seed)
    try:
        positions = _positions(examples, values, origin, scheme, shard, seed)
    except DataError as error:
        raise DataError(f"{examples.source}: {split} split of task {task.name!r}: {error}") from error
    kept = examples.take(positions)
    part = "" if len(kept) == len(examples) else f": {len(kept):,} of {len(examples):,} rows"
    cut = "" if shard is None else f", shard {shard} ({scheme.scheme})"
    return replace(kept, source=f"{examples.source}{part}{cut}")


def _read_checked(
    task: TaskSpec, origin: DataSource, split: SplitName, features: Sequence[str], by_column: str | None, seed: int
) -> tuple[Examples, Sequence[object]]:
    """All rows of the table that holds `split`, and the values of the sharding column (empty without one)."""
    if task.label in features:
        raise DataError(f"task {task.name!r}: its label column {task.label!r} is among the feature columns")
    if not (task.text or features):
        raise DataError(f"task {task.name!r} has no `text` column, and the model names no feature columns")
    if task.weight in features:
        raise DataError(f"task {task.name!r}: its weight column {task.weight!r} is among the feature columns")
    extra = [column for column in (by_column, task.weight) if column is not None]
    wanted = list(dict.fromkeys([*task.text, *features, *extra, task.label]))
    table = read_split(origin, task, split, wanted, derive_seed(seed, task.name))
    if not len(table):
        raise DataError(f"{table.source}: the {split} split of task {task.name!r} has no rows")
    missing = origin.format.missing if isinstance(origin, FilesSource) else ()
    columns: dict[str, Column] = {
        name: check_text(table.columns[name], name, table.source)
        if name in task.text
        else check_feature(table.columns[name], name, missing, table.source)
        for name in (*task.text, *features)
    }
    labels = check_labels(task, table.columns[task.label], missing, table.source)
    rows = np.arange(1, len(table) + 1, dtype=np.int64)
    values = () if by_column is None else table.columns[by_column]
    weights = None if task.weight is None else check_weights(table.columns[task.weight], task.weight, table.source)
    return Examples(task.name, split, columns, labels, rows, table.source, weights), values


def _positions(
    examples: Examples,
    values: Sequence[object],
    origin: DataSource,
    scheme: Sharding,
    shard: Shard | None,
    seed: int,
) -> Positions:
    """The rows of this split, within its limit, that belong to this shard, in the order of the source."""
    split = examples.split
    positions = np.arange(len(examples), dtype=np.int64)
    if split in ("validation", divided_split(origin)) and isinstance(fraction := origin.validation, float):
        positions = np.flatnonzero(sharding.held_out(len(examples), fraction, seed) == (split == "validation"))
    limit: int | None = getattr(origin.limits, split)
    if limit is not None and limit < len(positions):
        head = origin.limits.take == "head"
        positions = positions[:limit] if head else positions[sharding.sample(len(positions), limit, seed)]
    if shard is None:
        return positions
    if shard.count > len(positions):
        raise DataError(f"{len(positions):,} rows cannot be divided into {shard.count} shards")
    match scheme:
        case Sharding(scheme="dirichlet", alpha=float(alpha)):
            labels = examples.labels[positions]
            groups = labels if labels.dtype == np.int64 else sharding.score_bins(labels.astype(np.float32))
            return positions[sharding.dirichlet(groups.astype(np.int64), shard, alpha, seed)]
        case Sharding(scheme="column"):
            return positions[sharding.by_value([values[at] for at in positions.tolist()], shard)]
        case _:
            return positions[sharding.iid(len(positions), shard, seed)]
