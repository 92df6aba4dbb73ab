"""Gradient boosting on the inputs of the networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from experiments.__main__ import app
from experiments.baselines import table_of
from experiments.rows import examples_of
from tests.experiments.people import people, write_people


def test_boosting_reads_numbers_as_they_are_and_categories_by_number(tmp_path: Path) -> None:
    problem = people(tmp_path)
    examples = examples_of(problem, problem.tasks, "test", 0)["income"]
    table, categorical = table_of(examples, problem.inputs)
    assert categorical == [1]
    np.testing.assert_array_equal(table[:, 0], examples.numbers("age"))
    number = {"office": 0.0, "field": 1.0, "": np.nan}
    np.testing.assert_array_equal(table[:, 1], [number[value] for value in examples.columns["work"]])


def test_baselines_end_with_both_results(tmp_path: Path) -> None:
    words = ["baselines", "--dataset", str(write_people(tmp_path)), "--no-track", "--json", "--threads", "1"]
    done = CliRunner().invoke(app, [*words, "--trees", "20", "--leaves", "4", "--epochs", "1"])
    assert done.exit_code == 0, done.output
    boosted, network = json.loads(done.stdout.splitlines()[-1])["results"]
    assert (boosted["model"], network["model"]) == ("lightgbm", "single_task")
    assert boosted["test"]["marital"]["auc"] > 0.9
    assert boosted["test"]["income"]["loss"] < 0.69
    assert boosted["parameters"] > 40
