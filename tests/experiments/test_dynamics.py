"""The same training under different weights of the tasks' losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from experiments.dynamics import Dynamics, parse_weights, train_dynamics, usual_weightings
from experiments.report.results import read_results
from experiments.training import TrainPlan
from tests.experiments.people import people

TASKS = ["income", "marital"]


def test_tasks_that_are_not_named_weigh_1() -> None:
    assert parse_weights("marital = 4", TASKS) == {"income": 1.0, "marital": 4.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age=1", "'age': give each of income, marital once"),
        ("income=1,income=2", "'income': give each"),
        ("income", "income=: not a number"),
        ("income=much", "income=much: not a number"),
        ("income=0", "a weight is above 0"),
        ("income=inf", "a weight is above 0"),
    ],
)
def test_a_weighting_that_makes_no_sense_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_weights(text, TASKS)


def test_by_default_each_task_is_once_the_heavy_one() -> None:
    assert usual_weightings(TASKS) == [
        {"income": 1.0, "marital": 1.0}, {"income": 4.0, "marital": 1.0}, {"income": 1.0, "marital": 4.0},
    ]  # fmt: skip
    assert usual_weightings(["income"]) == [{"income": 1.0}]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Dynamics:
    plan = TrainPlan(epochs=2, batch_size=16, learning_rate=0.02, seed=3, threads=1)
    alike, heavy = {"income": 1.0, "marital": 1.0}, {"income": 50.0, "marital": 0.02}
    return train_dynamics("mmoe", people(tmp_path_factory.mktemp("people")), plan, [alike, heavy, alike])


def test_weights_and_nothing_else_make_the_difference(found: Dynamics) -> None:
    first, heavy, again = found.runs
    assert (first.history, first.test) == (again.history, again.test)
    last = {name: run.history[-1]["tasks"] for name, run in (("alike", first), ("heavy", heavy))}
    # What hardly counts is hardly learnt.
    assert last["heavy"]["marital"]["loss"] > last["alike"]["marital"]["loss"] + 0.01
    assert [entry["epoch"] for entry in heavy.history] == [1, 2]


def test_the_report_reads_what_is_written(found: Dynamics, tmp_path: Path) -> None:
    path = found.write(tmp_path / "results")
    assert path.name == "dynamics-mmoe-people-s3.json"
    [(_, result)] = read_results([path.parent]).dynamics
    assert [run.weights for run in result.runs] == [run.weights for run in found.runs]
    assert result.runs[0].history[1].gates["income"]["income"].load
    assert json.loads(path.read_text())["kind"] == "dynamics"
