"""Files that several tasks are labels of, read once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from common.data.config import FileFormat
from common.data.files import read_file
from common.data.tables import Table, require_columns
from common.errors import DataError

#: Whole files that are held at once: training and validation rows of the task before.
HELD: Final = 2

_tables: ContextVar[dict[tuple[Path, FileFormat], Table] | None] = ContextVar("tables", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """While this is open, `read_table` keeps all columns of the last `HELD` files; afterwards nothing is kept."""
    token = _tables.set({})
    try:
        yield
    finally:
        _tables.reset(token)


def read_table(path: Path, file_format: FileFormat, wanted: Sequence[str]) -> Table:
    """As `common.data.files.read_file`, from memory where `read_once` is open and the file has been read in it."""
    tables = _tables.get()
    if tables is None:
        return read_file(path, file_format, wanted)
    key = (path, file_format)
    table = tables.pop(key, None)
    if table is None:
        while len(tables) >= HELD:
            del tables[next(iter(tables))]
        try:
            table = read_file(path, file_format, None)
        except DataError:  # it may be about a column that is not wanted, or else is said again
            return read_file(path, file_format, wanted)
    if not table.columns:
        return read_file(path, file_format, wanted)
    tables[key] = table
    require_columns(wanted, list(table.columns), table.source)
    return Table({name: table.columns[name] for name in wanted}, table.source)
