"""Raw columns as a source holds them, before anything is checked against the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """Some columns of one split, row by row as the source gives them.

    Attributes:
        columns: the columns that were asked for; all of one length.
        source: file, or dataset and split, for messages and reports.
    """

    columns: Mapping[str, Sequence[object]]
    source: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def require_columns(wanted: Iterable[str], present: Sequence[str], source: str) -> None:
    """Refuse a source that lacks a column.

    Raises:
        DataError: names the missing columns and those that there are.
    """
    if missing := [name for name in wanted if name not in present]:
        have = ", ".join(repr(name) for name in present) or "none"
        raise DataError(f"{source}: no column {', '.join(repr(name) for name in missing)}; the columns are {have}")


def from_arrow(table: pa.Table, wanted: Sequence[str], source: str) -> Table:
    """The wanted columns of an Arrow table as Python values, nulls as None."""
    require_columns(wanted, table.column_names, source)
    return Table({name: table.column(name).to_pylist() for name in wanted}, source)
