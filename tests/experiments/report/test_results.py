"""Reading result files."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import DataError
from experiments.report.results import read_results
from tests.experiments.report.samples import cell, correlation, dynamics, train, write


def test_files_are_found_by_kind_below_every_folder(tmp_path: Path) -> None:
    write(tmp_path / "a" / "deep", one=train())
    write(tmp_path / "b", sweep=correlation(), weights=dynamics(), other={"kind": "cell", **cell("mmoe", 0.5, 0, 0.1)})
    write(tmp_path / "b", rows=[1, 2])
    results = read_results([tmp_path / "a", tmp_path / "b"])
    assert [name for name, _ in results.train] == ["a/deep/one.json"]
    assert [name for name, _ in results.correlation] == ["b/sweep.json"]
    assert [name for name, _ in results.dynamics] == ["b/weights.json"]
    assert results.other == ("b/other.json", "b/rows.json")


def test_a_file_below_two_of_the_folders_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "all" / "part", one=train())
    results = read_results([tmp_path / "all", tmp_path / "all" / "part"])
    assert len(results.train) == 1


def test_keys_that_the_report_does_not_read_are_no_error(tmp_path: Path) -> None:
    write(tmp_path, one=train(host="a machine"))
    assert read_results([tmp_path]).train[0][1].model == "mmoe"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({k: v for k, v in train().items() if k != "test"}, r"one.json: .*kind 'train': train\.test: Field required"),
        (train() | {"seed": "first"}, r"one.json: .*train\.seed: "),
        ({"kind": "correlation", "cells": [{"family": "mmoe"}]}, r"correlation\.cells\.0\.correlation: "),
    ],
)
def test_a_damaged_result_is_named_with_its_place(tmp_path: Path, document: object, message: str) -> None:
    write(tmp_path, one=document)
    with pytest.raises(DataError, match=message):
        read_results([tmp_path])


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"kind": "train"')
    with pytest.raises(DataError, match=r"half\.json: not JSON"):
        read_results([tmp_path])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no folder of results"):
        read_results([tmp_path / "absent"])
