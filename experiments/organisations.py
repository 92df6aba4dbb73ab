"""Separate organisations, simulated: each gets files of its own rows, and sees no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from common.data import Shard, SplitName, load_examples, sharding
from common.data.config import FileFormat, FilesSource
from common.data.locate import locate, read_split
from common.errors import ConfigError, DataError
from common.seeds import derive_seed
from experiments.rows import input_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from common.tasks import TaskSpec
    from experiments.problems import Problem

#: How training rows are divided: evenly at random, or so that all people of one education are with one organisation.
Partition = Literal["iid", "education"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation")


def own_files(task: TaskSpec) -> TaskSpec:
    """The task as the server has it: each organisation brings its rows in a folder of its own."""
    missing = task.data.format.missing if isinstance(task.data, FilesSource) else ()
    files = FilesSource(
        train="train.parquet", validation="validation.parquet", format=FileFormat(type="parquet", missing=missing)
    )
    return task.model_copy(update={"data": files})


def write_organisations(
    problem: Problem, tasks: Mapping[str, TaskSpec], count: int, partition: Partition, seed: int, folder: Path
) -> list[Path]:
    """Divide a problem's training rows, and its validation rows evenly, among organisations.

    Args:
        problem: where the rows are.
        tasks: labels of the same rows.
        count: number of organisations.
        partition: how training rows are divided.
        seed: draws who gets which rows.
        folder: a folder ``00``, ``01`` ... is made in it for each.

    Returns:
        each organisation's folder, in order: what its client takes as ``--data``.

    Raises:
        ConfigError: the tasks are of different rows, or the rows lack the column by which they are to be divided.
        DataError: the rows can't be had, do not fit the tasks, or can't be divided among so many.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = [folder / f"{number:02d}" for number in range(count)]
    for path in folders:
        path.mkdir(parents=True)
    for split in SPLITS:
        by_column = partition if partition != "iid" and split == "train" else None
        table, by_value = _table(problem, tasks, split, seed, by_column)
        if table.num_rows < count:
            raise DataError(
                f"{problem.name}: {count} organisations can't divide {table.num_rows} {split} rows: each needs one"
            )
        for number, path in enumerate(folders):
            shard = Shard(number, count)
            mine = (
                sharding.iid(table.num_rows, shard, derive_seed(seed, "organisations", split))
                if by_value is None
                else sharding.by_value(by_value, shard)
            )
            pq.write_table(table.take(pa.array(mine)), path / f"{split}.parquet")
    return folders


def _table(
    problem: Problem, tasks: Mapping[str, TaskSpec], split: SplitName, seed: int, by_column: str | None
) -> tuple[pa.Table, Sequence[object] | None]:
    """A split's raw rows, all columns that the tasks need, and the values by which to divide them."""
    import pyarrow as pa

    first = next(iter(tasks.values()))
    if others := [name for name, task in tasks.items() if task.data != first.data]:
        raise ConfigError(f"tasks {others} have rows of other files than {first.name}: they can't be divided together")
    columns = input_columns(problem)
    # Which rows these are; what is in them each organisation checks for itself.
    rows = load_examples(first, split, data=problem.folder, shard=None, seed=seed, columns=columns[:1]).rows
    extra = [column for task in tasks.values() for column in (task.label, task.weight) if column]
    wanted = dict.fromkeys([*columns, *extra, *([by_column] if by_column else [])])
    origin = locate(first, problem.folder)
    raw = read_split(origin, first, split, list(wanted), seed)
    at = pa.array(rows - 1)
    table = pa.table({name: pa.array(values) for name, values in raw.columns.items()}).take(at)
    return table, table.column(by_column).to_pylist() if by_column else None
