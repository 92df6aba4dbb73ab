"""The shipped problems over the real files, where these are at hand."""

from __future__ import annotations

import gzip
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from common.data import Shard, load_examples
from common.data.config import Sharding
from common.data.files import find_file
from experiments.problems import load_problem

DATA = Path(os.environ.get("FEDMTL_DATA", Path(__file__).parents[4] / "shared" / "data"))
LINES = 3000
FILES = (
    "census_income/adult.data",
    "census_income/adult.test",
    "census_income_kdd/census-income.data",
    "census_income_kdd/census-income.test",
)

pytestmark = pytest.mark.skipif(not (DATA / "census_income").is_dir(), reason=f"no census data at {DATA} (FEDMTL_DATA)")


@pytest.fixture(scope="module")
def first_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first lines of the four files, unpacked, in one folder."""
    folder = tmp_path_factory.mktemp("census")
    for name in FILES:
        path = find_file(DATA / name)
        assert path is not None
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            (folder / Path(name).name).write_text("".join(islice(lines, LINES)))
    return folder


def test_every_shipped_row_has_declared_values_and_the_tasks_their_known_shares(first_lines: Path) -> None:
    expected = {
        ("census-kdd", "income"): (0.06, 0.02),
        ("census-kdd", "marital"): (0.43, 0.05),
        ("census-kdd-education", "education"): (0.2, 0.05),
        ("adult", "income"): (0.24, 0.03),
        ("adult", "marital"): (0.33, 0.03),
    }
    for (name, task), (share, within) in expected.items():
        problem = load_problem(name, first_lines)
        columns = [*problem.inputs["numeric"], *problem.inputs["categorical"]]
        examples = load_examples(problem.tasks[task], "train", data=first_lines, shard=None, seed=1, columns=columns)
        assert abs(examples.labels.mean() - share) < within, (name, task)
        for column, values in problem.inputs["categorical"].items():
            assert set(examples.columns[column]) <= {*values, ""}, (name, column)


def test_halves_of_the_kdd_test_file_are_disjoint_and_the_same_for_both_tasks(first_lines: Path) -> None:
    problem = load_problem("census-kdd", first_lines)
    rows = {
        (task, split): load_examples(spec, split, data=first_lines, shard=None, seed=seed, columns=["age"]).rows
        for seed, (task, spec) in enumerate(problem.tasks.items())
        for split in ("train", "validation", "test")
    }
    for split in ("train", "validation", "test"):
        assert np.array_equal(rows["income", split], rows["marital", split])
    assert len(rows["income", "train"]) == LINES, "all of the training file"
    assert sorted([*rows["income", "validation"], *rows["income", "test"]]) == list(range(1, LINES + 1))


def test_clients_hold_whole_groups_by_education_and_the_same_rows_for_both_tasks(first_lines: Path) -> None:
    problem = load_problem("census-kdd", first_lines)
    sharding = Sharding(scheme="column", column="education")
    seen: list[set[str]] = []
    for index in range(10):
        rows = []
        for spec in problem.tasks.values():
            by_education = spec.model_copy(update={"data": spec.data.model_copy(update={"sharding": sharding})})
            columns = [*problem.inputs["numeric"], "education"]
            part = load_examples(
                by_education, "train", data=first_lines, shard=Shard(index, 10), seed=1, columns=columns
            )
            rows.append(part.rows.tolist())
        assert rows[0] == rows[1]
        seen.append(set(part.columns["education"]))
    assert sum(map(len, seen)) == len(set().union(*seen)) == 17
