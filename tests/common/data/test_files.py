from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.config import FileFormat
from common.data.files import read_file
from common.errors import DataError

PLAIN = FileFormat()
#: Any text but what ends a field or line in a TSV file; a trailing "\r" belongs to the line end.
tsv_field = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\t\n"), min_size=1).filter(
    lambda text: not text.endswith("\r") and not text.startswith("\ufeff")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def _write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


@given(rows=st.lists(st.tuples(tsv_field, tsv_field), min_size=1, max_size=20))
def test_a_tsv_field_is_read_exactly_whatever_quotes_or_separators_it_holds(
    folder: Path, rows: list[tuple[str, str]]
) -> None:
    path = _write(folder, "t.tsv", "a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    table = read_file(path, PLAIN, ["b", "a"])
    assert list(table.columns["a"]) == [a for a, _ in rows]
    assert list(table.columns["b"]) == [b for _, b in rows]


@pytest.mark.parametrize("text", ["null", "None", "NA", "nan", '"', '"open', "a, b", "a\rb", "a\x85b\u2028c"])
def test_text_that_other_readers_change_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = _write(tmp_path, "t.tsv", f"a\tlabel\n{text}\t1\n")
    assert list(read_file(path, PLAIN, ["a"]).columns["a"]) == [text]


def test_csv_quotes_hold_separators_and_line_ends(tmp_path: Path) -> None:
    path = _write(tmp_path, "t.csv", 'a,b\n"x, ""y""\nz",1\r\nlast,2\n')
    assert dict(read_file(path, PLAIN, ["a", "b"]).columns) == {"a": ['x, "y"\nz', "last"], "b": ["1", "2"]}


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_byte_order_mark_and_compression_make_no_difference(tmp_path: Path, name: str) -> None:
    content = "\ufeffa,b\nü,1\n".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(read_file(path, PLAIN, ["a"]).columns["a"]) == ["ü"]


def test_the_options_for_headless_files_with_comments(tmp_path: Path) -> None:
    path = _write(tmp_path, "t.test", "junk line\n|comment\n1 ;  a b \n\n|more\n2;c\n\n")
    file_format = FileFormat(
        type="csv",
        delimiter=";",
        quoting="none",
        header=False,
        columns=("n", "s"),
        skip_lines=1,
        comment="|",
        strip=True,
    )
    assert dict(read_file(path, file_format, ["n", "s"]).columns) == {"n": ["1", "2"], "s": ["a b", "c"]}


def test_jsonl_and_parquet_give_values_of_their_own_types(tmp_path: Path) -> None:
    rows = [{"a": "x", "n": 1}, {"a": None, "n": 2.5}, {"n": None, "a": "y"}]
    jsonl = _write(tmp_path, "t.jsonl", "".join(json.dumps(row) + "\n\n" for row in rows))
    parquet = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": ["x", None, "y"], "n": [1.0, 2.5, None], "unused": [1, 2, 3]}), parquet)
    for path in (jsonl, parquet):
        table = read_file(path, PLAIN, ["a", "n"])
        assert dict(table.columns) == {"a": ["x", None, "y"], "n": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", "a,b\n1,2\n"), ("t.tsv", "a\tb\n1\t2\n"), ("t.jsonl", '{"a": 1, "b": 2}\n')],
)
def test_a_missing_column_is_refused_with_those_that_exist(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=r"no column 'c'; the columns are 'a', 'b'"):
        read_file(_write(tmp_path, name, content), PLAIN, ["a", "c"])


def test_a_missing_parquet_column_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"no column 'c'; the columns are 'a', 'b'"):
        read_file(tmp_path / "t.parquet", PLAIN, ["c"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", b"a\tb\n1\t2\n3\n4\t5\t6\n", "data rows 2, 3: 1 fields in the first of them, where 2 columns"),
        ("t.csv", b'a,b\n"x"y,1\n', "not a csv file"),
        ("t.csv", b'a,b\n"never closed,1\n', "not a csv file"),
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"a,a\n1,2\n", r"names \['a'\] more than once"),
        ("t.csv", b"a,b\n\xff\xfe,1\n", "set `format.encoding`"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:-12], "cannot be read"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "data row 2: not JSON"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', "data row 2: list where a JSON object"),
        ("t.parquet", b"PAR1 no PAR1", "not a parquet file"),
        ("t.data", b"a,b\n1,2\n", "set `format: {type"),
    ],
)
def test_an_unreadable_file_is_refused_and_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        read_file(path, PLAIN, ["a"])
    assert str(path) in str(refused.value)


def test_an_absent_file_is_refused_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        read_file(tmp_path / "none.csv", PLAIN, ["a"])


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="klingon"):
        read_file(_write(tmp_path, "t.csv", "a\n1\n"), FileFormat(encoding="klingon"), ["a"])


def test_a_field_may_be_longer_than_the_csv_modules_limit(tmp_path: Path) -> None:
    path = _write(tmp_path, "t.csv", "a,b\n" + "x" * 200_000 + ",1\n")
    assert len(str(read_file(path, PLAIN, ["a"]).columns["a"][0])) == 200_000


def test_a_file_that_was_packed_or_unpacked_is_found_and_named_as_it_is(tmp_path: Path) -> None:
    _write(tmp_path, "t.csv", "a,b\n1, x\n")
    table = read_file(tmp_path / "t.csv.gz", FileFormat(strip=True), None)
    assert dict(table.columns) == {"a": ["1"], "b": ["x"]}
    assert table.source.endswith("t.csv")
    (tmp_path / "u.csv.gz").write_bytes(gzip.compress(b"a\n7\n"))
    assert dict(read_file(tmp_path / "u.csv", PLAIN, None).columns) == {"a": ["7"]}
