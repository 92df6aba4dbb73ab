from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from common.data.checks import check_feature, check_labels, check_text, check_weights
from common.errors import DataError
from common.tasks import TaskSpec


def _task(**entry: Any) -> TaskSpec:  # noqa: ANN401
    return TaskSpec.model_validate(
        {"name": "t", "kind": "classification", "text": "s", "labels": ["neg", "pos"], **entry}
    )


REGRESSION = _task(kind="regression", labels=[], label_range=[0, 5])


@pytest.mark.parametrize(
    ("labels", "raw", "ids"),
    [
        (["neg", "pos"], ["neg", "pos", "0", "1", 0, 1, 1.0, False, True], [0, 1, 0, 1, 0, 1, 1, 0, 1]),
        (["false", "true"], [False, True, "true"], [0, 1, 1]),
        ([1, 2, 3], ["1", 3, 2.0], [0, 2, 1]),
        ({"low": ["<=50K", "<=50K."], "high": ">50K"}, ["<=50K.", ">50K", "<=50K"], [0, 1, 0]),
        ({"ever": "*", "never": "Never"}, ["Never", "Married", 7], [1, 0, 0]),
        ({"bad": [1, 2], "good": [3]}, [1, "2", 3.0], [0, 0, 1]),
        ({"small": 0.5, "large": 1.5}, [0.5, "1.5"], [0, 1]),
    ],
)
def test_labels_are_names_ids_or_raw_values(labels: object, raw: list[object], ids: list[int]) -> None:
    result = check_labels(_task(labels=labels), raw, (), "f.csv")
    assert result.dtype == np.int64
    assert result.tolist() == ids


@pytest.mark.parametrize(
    ("labels", "bad", "allowed"),
    [
        (["neg", "pos"], 2, "'neg', 'pos', or the ids 0 to 1"),
        (["neg", "pos"], -1, "'neg', 'pos', or the ids 0 to 1"),
        (["neg", "pos"], "POS", "'neg', 'pos', or the ids 0 to 1"),
        (["neg", "pos"], 0.5, "'neg', 'pos', or the ids 0 to 1"),
        (["neg", "pos"], None, "'neg', 'pos'"),
        (["neg", "pos"], "", "'neg', 'pos'"),
        (["neg", "pos"], math.nan, "'neg', 'pos'"),
        (["neg", "pos"], [1], "'neg', 'pos'"),
        ([1, 2], 0, "allowed: '1', '2'"),
        ({"low": "a", "high": "b"}, "low", "allowed: 'a', 'b'"),
        ({"low": "a", "high": "b"}, 0, "allowed: 'a', 'b'"),
        ({"low": "a", "high": "*"}, None, "'a', or anything else"),
        ({"low": "a", "high": "*"}, "?", "'a', or anything else"),
    ],
)
def test_a_label_of_no_class_is_refused_with_its_row(labels: object, bad: object, allowed: str) -> None:
    task = _task(labels=labels)
    good = task.labels[0].values[0] if task.labels[0].values else task.labels[0].name
    with pytest.raises(DataError) as refused:
        check_labels(task, [good, bad, good, bad], ("?",), "f.csv")
    for part in ("f.csv", "'label'", "data rows 2, 4", repr(bad), allowed):
        assert part in str(refused.value)


def test_scores_are_read_as_float32() -> None:
    scores = check_labels(REGRESSION, ["0", 5, 2.5, "1e0"], (), "f")
    assert scores.dtype == np.float32
    assert scores.tolist() == [0, 5, 2.5, 1]


@pytest.mark.parametrize("bad", ["", None, "x", "nan", math.nan, math.inf, "inf", 5.1, -0.1, True, [1]])
def test_what_is_no_score_is_refused_with_its_row(bad: object) -> None:
    with pytest.raises(DataError, match=r"data row 2: found .*allowed: numbers from 0 to 5"):
        check_labels(REGRESSION, ["1.0", bad], (), "f")


@pytest.mark.parametrize("bad", ["nan", math.nan, math.inf, "-inf"])
def test_a_score_must_be_finite_even_without_a_range(bad: object) -> None:
    with pytest.raises(DataError, match=r"data row 1: found .*allowed: finite numbers"):
        check_labels(_task(kind="regression", labels=[]), [bad], (), "f")


def test_only_five_rows_and_the_number_of_the_rest_are_named() -> None:
    with pytest.raises(DataError, match=r"data rows 1, 2, 3, 4, 5 and 1,995 more: found 0, 1, 2, 3, 4 and 1,995 more"):
        check_text(list(range(2000)), "s", "f")


@pytest.mark.parametrize("bad", [None, 3, 2.5, ["a"], {"a": 1}, b"bytes"])
def test_text_that_is_no_string_is_refused(bad: object) -> None:
    with pytest.raises(DataError, match=r"f: text column 's', data row 2: found .*; allowed: strings"):
        check_text(["fine", bad], "s", "f")


def test_features_are_text_or_numbers() -> None:
    assert check_feature(["a", "?", None], "c", ("?",), "f") == ["a", "", ""]
    numbers = check_feature([1, None, 2.5], "c", (), "f")
    assert np.array_equal(np.asarray(numbers), [1, np.nan, 2.5], equal_nan=True)
    with pytest.raises(DataError, match=r"feature column 'c', data rows 2, 3: found 'a', \[1\]"):
        check_feature([1, "a", [1]], "c", (), "f")


def test_weights_are_numbers_of_0_or_more_however_they_are_written() -> None:
    weights = check_weights(["1.5", "0", 2, 0.25], "w", "f.csv")
    assert weights.tolist() == [1.5, 0, 2, 0.25]
    assert weights.dtype == np.float32
    expected = "f.csv: weight column 'w', data row 2: found .*finite numbers of 0 or more"
    for bad in ("-1", "", "heavy", None, math.nan, math.inf, "1e39", True):
        with pytest.raises(DataError, match=expected):
            check_weights([1, bad], "w", "f.csv")
