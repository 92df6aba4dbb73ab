"""Which table holds a split: the task's own source, or what the client's `--data` puts in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.data.config import (
    DEFAULT_VALIDATION,
    DataSource,
    FileFormat,
    FilesSource,
    HubSource,
    SplitName,
    SyntheticSource,
)
from common.data.files import type_of
from common.data.held_tables import read_table
from common.data.tables import Table
from common.errors import DataError
from common.tasks import TaskSpec

#: File names, without suffix, that a data folder may use for a split.
SPLIT_STEMS: Final[dict[SplitName, tuple[str, ...]]] = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid"),
    "test": ("test",),
}


def locate(task: TaskSpec, data: Path | None) -> DataSource:
    """Combine the task's source with the client's `--data`.

    ===================  ==========================================================================
    ``--data``           meaning
    ===================  ==========================================================================
    left out             the task's source; relative paths lie in the working directory
    a file               the training rows; validation is the task's fraction of them, or 10 %;
                         there is no test split
    a folder             where the task's relative paths lie. When the task names no files (hub,
                         synthetic, or nothing): the folder's ``<task>/`` or itself must hold
                         ``train.*`` and may hold ``validation.*`` (or ``dev.*``) and ``test.*``
    ===================  ==========================================================================

    Raises:
        DataError: there is nothing to read.
    """
    origin = task.data
    if data is None:
        if isinstance(origin, FilesSource) and origin.train is None:
            raise DataError(f"task {task.name!r} names no data of its own: give this client's with --data PATH")
        return origin
    if not data.exists():
        raise DataError(f"--data {data}: there is no such file or folder (looked at {data.absolute()})")
    common = {"limits": origin.limits, "sharding": origin.sharding, "seed": origin.seed}
    fraction = DEFAULT_VALIDATION
    if divided_split(origin) == "train" and isinstance(origin.validation, float):
        fraction = origin.validation
    if data.is_file():
        return FilesSource(train=str(data), validation=fraction, format=_format_for(data, origin), **common)
    if isinstance(origin, FilesSource) and origin.train is not None:
        validation = origin.validation if isinstance(origin.validation, float) else str(data / origin.validation)
        test = None if origin.test is None else str(data / origin.test)
        resolved = {"train": str(data / origin.train), "validation": validation, "test": test}
        return origin.model_copy(update=resolved)
    folder = data / task.name if (data / task.name).is_dir() else data
    files = {split: _find(folder, split) for split in SPLIT_STEMS}
    if files["train"] is None:
        raise DataError(f"--data {data}: {folder} holds no file train.csv, .tsv, .jsonl or .parquet (or .gz of these)")
    written = _format_for(Path(files["train"]), origin)
    return FilesSource(
        train=files["train"], validation=files["validation"] or fraction, test=files["test"], format=written, **common
    )


def _format_for(path: Path, origin: DataSource) -> FileFormat:
    """The task's own format where it describes this type of file; another type of file speaks for itself."""
    if not isinstance(origin, FilesSource):
        return FileFormat()
    described = origin.format.type or (type_of(Path(origin.train)) if origin.train else None)
    return origin.format if described is None or type_of(path) in (None, described) else FileFormat()


def _find(folder: Path, split: SplitName) -> str | None:
    """The one file of a split in a folder; None when there is none."""
    for stem in SPLIT_STEMS[split]:
        found = sorted(
            path for path in folder.iterdir() if path.name.split(".")[0] == stem and type_of(path) is not None
        )
        if len(found) > 1:
            raise DataError(f"{folder}: more than one {split} file: {', '.join(path.name for path in found)}")
        if found:
            return str(found[0])
    return None


def read_split(origin: DataSource, task: TaskSpec, split: SplitName, wanted: Sequence[str], seed: int) -> Table:
    """The raw rows of the table that holds `split`; for a held-out fraction that is the training table.

    Raises:
        DataError: the split does not exist or cannot be read.
    """
    match origin:
        case SyntheticSource():
            from common.data.synthetic import generate

            rows = getattr(origin, split)
            if rows is None:
                raise _no_test(task)
            return generate(origin.synthetic, split, rows, seed, wanted)
        case FilesSource() | HubSource():
            name = getattr(origin, split)
            if name is None:
                raise _no_test(task)
            if isinstance(name, float):
                name = origin.test if divided_split(origin) == "test" else origin.train
            if isinstance(origin, FilesSource):
                return read_table(Path(name), origin.format, wanted)
            from common.data.hub import read_hub

            return read_hub(origin, name, wanted, task.label_names)


def divided_split(origin: DataSource) -> SplitName | None:
    """The split whose rows are divided between it and ``validation``; None where validation rows are of their own."""
    if isinstance(origin, SyntheticSource) or not isinstance(origin.validation, float):
        return None
    return origin.validation_from if isinstance(origin, FilesSource) else "train"


def _no_test(task: TaskSpec) -> DataError:
    return DataError(f"task {task.name!r} has no test split; name one with `data.test`")
