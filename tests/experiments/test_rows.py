"""Rows that several tasks share: read once, limited alike."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import load_examples
from common.errors import DataError
from common.families import build_family
from common.families.tabular_config import SharedBottomConfig
from experiments.problems import load_problem
from experiments.rows import encoded_split, examples_of, input_columns, limited
from tests.experiments.people import people, write_people


def test_tasks_read_together_are_what_each_is_when_read_alone(tmp_path: Path) -> None:
    problem = people(tmp_path)
    together = examples_of(problem, problem.tasks, "train", 0)
    assert together["income"].columns is together["marital"].columns
    for name, task in problem.tasks.items():
        columns = input_columns(problem)
        alone = load_examples(task, "train", data=problem.folder, shard=None, seed=0, columns=columns)
        np.testing.assert_array_equal(together[name].labels, alone.labels)
        assert together[name].task == name
        assert {key: list(value) for key, value in together[name].columns.items()} == {
            key: list(value) for key, value in alone.columns.items()
        }


def test_a_wrong_label_of_the_second_task_is_named_by_its_row_in_the_file(tmp_path: Path) -> None:
    problem = people(tmp_path)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    lines[7] = lines[7][:-1] + "x"
    (tmp_path / "train.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"label column 'marital', data row 7: found 'x'"):
        examples_of(problem, problem.tasks, "train", 0)


def test_encoded_tasks_share_inputs_and_have_labels_of_their_own(tmp_path: Path) -> None:
    problem = people(tmp_path)
    config = SharedBottomConfig.model_validate({"family": "shared_bottom", **problem.inputs})
    split = encoded_split(problem, build_family(config, problem.tasks, base_dir=tmp_path), problem.tasks, "test", 0)
    one, other = (split.encoded[name].collate(np.arange(5))["features"] for name in ("income", "marital"))
    assert torch.equal(one, other)
    assert not torch.equal(split.encoded["income"].labels, split.encoded["marital"].labels)
    assert len(split.shown["marital"]) == len(split.encoded["marital"]) == 60


def test_a_limit_takes_the_same_rows_of_every_task(tmp_path: Path) -> None:
    problem = people(tmp_path)
    for split in ("train", "validation", "test"):
        some = examples_of(problem, limited(problem.tasks, 20), split, 0)
        assert len(some["income"]) == 20
        np.testing.assert_array_equal(some["income"].rows, some["marital"].rows)


@pytest.mark.parametrize(("unit", "told"), [("1", False), ("1000", True)])
def test_a_regression_in_a_unit_that_drowns_other_tasks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unit: str, told: bool
) -> None:
    source = write_people(tmp_path)
    source.write_text(
        source.read_text().replace('{label: marital, labels: {never: "n", married: "y"}}', "{label: due}")
    )
    for name in ("train", "valid", "test"):
        file = tmp_path / f"{name}.csv"
        first, *rows = file.read_text().splitlines()
        file.write_text("\n".join([f"{first},due", *(f"{row},{unit}" for row in rows)]))
    problem = load_problem(str(source), None)
    config = SharedBottomConfig.model_validate(
        {"family": "shared_bottom", "bottom": [2], "tower": [2], **problem.inputs}
    )
    family = build_family(config, problem.tasks, base_dir=tmp_path)
    with caplog.at_level(logging.WARNING, logger="fedmtl.experiments"):
        encoded_split(problem, family, problem.tasks, "train", 0)
    assert ("task marital: its labels are of the size 1e+03" in caplog.text) == told
