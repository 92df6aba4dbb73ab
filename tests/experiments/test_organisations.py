"""Rows divided among organisations: each row once, each organisation a folder that a client can read."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.data import load_examples
from common.errors import ConfigError, DataError
from experiments.organisations import Partition, own_files, write_organisations
from experiments.rows import examples_of, input_columns
from tests.experiments.people import EDUCATION, people


def rows_of(folder: Path, split: str) -> list[tuple[object, ...]]:
    table = pq.read_table(folder / f"{split}.parquet").select(["age", "work", "income", "marital"])
    return list(zip(*table.to_pydict().values(), strict=True))


@pytest.mark.parametrize("partition", ["iid", "education"])
def test_every_row_is_with_one_organisation(tmp_path: Path, partition: Partition) -> None:
    problem = people(tmp_path)
    [whole] = write_organisations(problem, problem.tasks, 1, "iid", 0, tmp_path / "whole")
    folders = write_organisations(problem, problem.tasks, 3, partition, 0, tmp_path / "orgs")
    for split, count in (("train", 120), ("validation", 60)):
        parts = [rows_of(folder, split) for folder in folders]
        assert sorted(row for part in parts for row in part) == sorted(rows_of(whole, split))
        assert list(map(len, parts)) == [count // 3] * 3


def test_by_education_each_education_is_with_one_organisation(tmp_path: Path) -> None:
    problem = people(tmp_path)
    folders = write_organisations(problem, problem.tasks, 3, "education", 0, tmp_path / "orgs")
    found = [set(pq.read_table(at / "train.parquet").column("education").to_pylist()) for at in folders]
    assert sorted(map(tuple, found)) == sorted((name,) for name in EDUCATION)


def test_a_client_reads_its_rows_as_the_problem_has_them(tmp_path: Path) -> None:
    problem = people(tmp_path)
    [folder] = write_organisations(problem, problem.tasks, 1, "iid", 0, tmp_path / "orgs")
    for name, expected in examples_of(problem, problem.tasks, "train", 0).items():
        task = own_files(problem.tasks[name])
        found = load_examples(task, "train", data=folder, shard=None, seed=0, columns=input_columns(problem))
        assert found.labels.tolist() == expected.labels.tolist()
        assert {key: list(value) for key, value in found.columns.items()} == {
            key: list(value) for key, value in expected.columns.items()
        }


def test_more_organisations_than_educations_are_refused(tmp_path: Path) -> None:
    problem = people(tmp_path)
    with pytest.raises(DataError, match="3 distinct values"):
        write_organisations(problem, problem.tasks, 4, "education", 0, tmp_path / "orgs")


def test_tasks_over_different_files_are_refused(tmp_path: Path) -> None:
    problem = people(tmp_path)
    other = problem.tasks["marital"]
    data = other.data.model_copy(update={"train": "other.csv"})
    tasks = {**problem.tasks, "marital": other.model_copy(update={"data": data})}
    with pytest.raises(ConfigError, match="marital"):
        write_organisations(problem, tasks, 2, "iid", 0, tmp_path / "orgs")
