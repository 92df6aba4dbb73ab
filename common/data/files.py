"""Reading CSV, TSV, JSONL and Parquet files, plain or gzip-compressed."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from common.data.config import FileFormat, FileType
from common.data.problems import rows_text
from common.data.tables import Table, from_arrow, require_columns
from common.errors import DataError

SUFFIXES: Final[dict[str, FileType]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
#: The csv module's own limit is 128 KiB a field; documents may be longer.
FIELD_LIMIT: Final = 2**31 - 1
#: Rows of a delimited file that are turned into columns at once: as many as stay in the cache of the processor.
CHUNK: Final = 128


def type_of(path: Path) -> FileType | None:
    """The file type by suffix, looking through ``.gz``; None when the name does not say."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    return SUFFIXES.get(name.suffix.lower())


def find_file(path: Path) -> Path | None:
    """The file, or in its absence the same one compressed (``.gz``) or unpacked; None when there is neither."""
    twin = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    return next((candidate for candidate in (path, twin) if candidate.is_file()), None)


def read_file(path: Path, file_format: FileFormat, wanted: Sequence[str] | None) -> Table:
    """The wanted columns of a file, or of its twin with or without ``.gz`` where only that is there; with None all
    columns.

    Text files give every field as text; JSONL and Parquet give values of their own types. Blank lines
    are no rows.

    Raises:
        DataError: the file is absent, unreadable, not of its type, or lacks a column.
    """
    source = str(path)
    kind = file_format.type or type_of(path)
    if kind is None:
        raise DataError(f"{source}: its name does not tell its type; set `format: {{type: csv|tsv|jsonl|parquet}}`")
    if (present := find_file(path)) is None:
        raise DataError(
            f"{source}: there is no such file (looked at {path.absolute()}). Relative paths in the task's `data` "
            "lie in the folder that --data names, or in the working directory without --data"
        )
    path, source = present, str(present)
    try:
        if kind == "parquet":
            return _read_parquet(path, wanted, source)
        with _open_text(path, file_format.encoding) as lines:
            if kind == "jsonl":
                return _read_jsonl(lines, wanted, source)
            return _read_delimited(lines, kind, file_format, wanted, source)
    except UnicodeError as error:
        raise DataError(f"{source}: not {file_format.encoding} text ({error}); set `format.encoding`") from error
    except LookupError as error:
        raise DataError(f"{source}: cannot be read: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source}: cannot be read: {type(error).__name__}: {error}") from error


def _open_text(path: Path, encoding: str) -> io.TextIOBase:
    # newline="\n": only line feeds end a line, so that a stray carriage return in a text stays one.
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding=encoding, newline="\n")
    return path.open(encoding=encoding, newline="\n")


def _read_delimited(
    lines: Iterable[str], kind: FileType, file_format: FileFormat, wanted: Sequence[str] | None, source: str
) -> Table:
    records = _records(itertools.islice(lines, file_format.skip_lines, None), kind, file_format, source)
    header = list(file_format.columns) if not file_format.header else next(records, None)
    if not header:
        raise DataError(f"{source}: the file is empty; expected a line of column names")
    header = [name.strip() for name in header] if file_format.strip else header
    wanted = list(dict.fromkeys(header)) if wanted is None else wanted
    if twice := sorted({name for name in header if header.count(name) > 1} & set(wanted)):
        raise DataError(f"{source}: the header names {twice} more than once")
    require_columns(wanted, header, source)
    at = {name: header.index(name) for name in wanted}
    fields = {name: _Known(strip=file_format.strip) for name in wanted}
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    ragged: dict[int, int] = {}
    count = 0
    while chunk := list(itertools.islice(records, CHUNK)):
        if any(len(row) != len(header) for row in chunk):
            ragged |= {count + i: len(row) for i, row in enumerate(chunk, 1) if len(row) != len(header)}
        elif not ragged:
            by_column = list(zip(*chunk, strict=True))
            for name, values in columns.items():
                values.extend(map(fields[name].__getitem__, by_column[at[name]]))
        count += len(chunk)
    if ragged:
        raise DataError(
            f"{source}: {rows_text(ragged)}: {next(iter(ragged.values()))} fields in the first of them, where "
            f"{len(header)} columns ({', '.join(header)}) are expected; check `format.delimiter` and `format.quoting`"
        )
    return Table(columns, source)


class _Known(dict[str, str]):
    """A field as it is written to the field as it is kept; equal fields become one object, as categories are few."""

    def __init__(self, *, strip: bool) -> None:
        super().__init__()
        self._strip = strip

    def __missing__(self, field: str) -> str:
        kept = self[field] = field.strip() if self._strip else field
        return kept


def _records(lines: Iterable[str], kind: FileType, file_format: FileFormat, source: str) -> Iterator[list[str]]:
    """The lines as lists of fields, not stripped, without blank lines and comments."""
    delimiter = file_format.delimiter or ("\t" if kind == "tsv" else ",")
    quoting = file_format.quoting or ("none" if kind == "tsv" else "minimal")
    split = _split_plainly(lines, delimiter) if quoting == "none" else _split_quoted(lines, file_format, delimiter)
    comment = file_format.comment
    try:
        for fields in split:
            if not fields or (comment is not None and fields[0].startswith(comment)):
                continue
            yield fields
    except csv.Error as error:
        raise DataError(f"{source}: not a csv file: {error}; check `format.quoting`") from error


def _split_plainly(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Split at every delimiter: without quoting the csv module has nothing to add, and is stricter about `\\r`."""
    for line in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        yield text.split(delimiter) if text else []


def _split_quoted(lines: Iterable[str], file_format: FileFormat, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(FIELD_LIMIT)
    # strict: a quote in the wrong place is an error, not a silent merge of rows.
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=file_format.strip, strict=True)


def _read_jsonl(lines: Iterable[str], wanted: Sequence[str] | None, source: str) -> Table:
    rows: list[dict[str, object]] = []
    present: dict[str, None] = {}
    for line in lines:
        if not line.strip():
            continue
        number = len(rows) + 1
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{source}: data row {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{source}: data row {number}: {type(row).__name__} where a JSON object is expected")
        rows.append(row)
        present.update(dict.fromkeys(row))
    wanted = list(present) if wanted is None else wanted
    if rows:
        require_columns(wanted, list(present), source)
    return Table({name: [row.get(name) for row in rows] for name in wanted}, source)


def _read_parquet(path: Path, wanted: Sequence[str] | None, source: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            wanted = present if wanted is None else wanted
            require_columns(wanted, present, source)
            return from_arrow(file.read(columns=list(wanted)), wanted, source)
    except pa.ArrowException as error:
        raise DataError(f"{source}: not a parquet file: {error}") from error
