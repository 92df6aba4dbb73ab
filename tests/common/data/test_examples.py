from __future__ import annotations

import numpy as np
import pytest

from common.data import Column, Examples
from common.errors import DataError


def _examples(**columns: Column) -> Examples:
    count = len(next(iter(columns.values())))
    return Examples("t", "train", columns, np.arange(count), np.arange(11, 11 + count), "f.csv")


def test_taken_rows_keep_their_text_label_and_row_number() -> None:
    taken = _examples(s=["a", "b", "c"], n=np.array([1.0, 2, 3])).take([2, 0])
    assert len(taken) == 2
    assert taken.columns["s"] == ["c", "a"]
    assert [list(values) for values in (taken.columns["n"], taken.labels, taken.rows)] == [[3, 1], [2, 0], [13, 11]]


def test_numbers_come_from_text_and_arrays() -> None:
    assert _examples(n=["1", "2.5", " 3"]).numbers("n").tolist() == [1, 2.5, 3]
    assert np.isnan(_examples(n=["1", ""]).numbers("n", allow_missing=True)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "found"),
    [(["1", "x"], "'x'"), (["1", ""], "''"), (["1", "inf"], "'inf'"), (np.array([1, np.nan]), "nan")],
)
def test_what_is_no_number_is_refused_with_the_row_of_its_source(values: Column, found: str) -> None:
    with pytest.raises(DataError, match=r"f.csv: column 'n' must hold numbers; data row 12: found ") as refused:
        _examples(n=values).numbers("n")
    assert found in str(refused.value)


def test_an_infinite_number_is_refused_even_where_missing_ones_are_allowed() -> None:
    with pytest.raises(DataError, match="data row 12"):
        _examples(n=np.array([1, np.inf])).numbers("n", allow_missing=True)


def test_categories_of_numbers_are_written_plainly() -> None:
    assert _examples(c=np.array([1.0, 2.5, np.nan])).categories("c") == ["1", "2.5", ""]
    assert _examples(c=["x", ""]).categories("c") == ["x", ""]
