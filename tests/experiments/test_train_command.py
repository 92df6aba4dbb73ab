"""``python -m experiments train`` on a tiny problem, in this process; the federation has processes of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.__main__ import app
from tests.experiments.people import write_people


def run(folder: Path, *words: str) -> dict[str, Any]:
    """The object that the command ends with."""
    source = write_people(folder)
    done = CliRunner().invoke(
        app, ["train", "--dataset", str(source), "--no-track", "--json", "--threads", "1", *words]
    )
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_central_training_ends_with_one_line_that_says_all(tmp_path: Path) -> None:
    words = ("--model", "MultiGateMixtureOfExperts", "--epochs", "2", "--batch-size", "16", "--seed", "3")
    found = run(tmp_path, *words, "--learning-rate", "0.02", "--out", str(tmp_path / "out"))
    assert (found["model"], found["dataset"], found["seed"], found["epochs"]) == ("mmoe", "people", 3, 2)
    assert found["test"]["marital"]["auc"] > 0.8
    assert 0 <= found["test"]["income"]["auc"] <= 1
    assert [entry["epoch"] for entry in found["history"]] == [1, 2]
    gate = found["history"][-1]["gates"]["income"]["income"]
    assert len(gate["load"]) == 8
    assert sum(gate["load"]) == pytest.approx(1)
    assert found["history"][-1]["gate_distances"][0]["tasks"] == ["income", "marital"]
    assert found["examples_per_second"] > 0
    assert found["specialisation"].keys() == {"income", "marital"}
    assert json.loads((tmp_path / "out" / "mmoe-people-s3.json").read_text()) == found


def test_several_models_are_a_list(tmp_path: Path) -> None:
    found = run(tmp_path, "--models", "shared_bottom,progressive", "--epochs", "1", "--limit", "40")
    assert [result["model"] for result in found["results"]] == ["shared_bottom", "progressive"]
    assert found["results"][1]["history"][0]["tasks"].keys() == {"income", "marital"}


def test_a_target_task_is_trained_alone(tmp_path: Path) -> None:
    found = run(tmp_path, "--model", "SingleTaskModel", "--target-task", "marital", "--epochs", "1")
    assert found["test"].keys() == {"marital"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "momoe"), "allowed are single_task"),
        (("--target-task", "age"), "people has the tasks income, marital"),
        (("--federated", "2", "--local-epochs", "0.7"), "no whole number of rounds"),
        (("--federated", "61"), "61 organisations can't divide 60 validation rows"),
        (("--models", "mmoe", "MultiGateMixtureOfExperts"), "mmoe: each once"),
        (("--model", ""), "allowed are single_task"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    source = str(write_people(tmp_path))
    done = CliRunner().invoke(app, ["train", "--dataset", source, "--no-track", *words])
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_federation_without_test_rows_is_refused_before_it_is_run(tmp_path: Path) -> None:
    source = write_people(tmp_path)
    source.write_text(source.read_text().replace(", test: test.csv", ""))
    done = CliRunner().invoke(app, ["train", "--dataset", str(source), "--no-track", "--federated", "2"])
    assert done.exit_code == 2
    assert "files.test is not given" in done.stderr


def test_a_federation_of_real_processes_is_measured_like_central_training(tmp_path: Path) -> None:
    words = ["--model", "mmoe", "--federated", "2", "--epochs", "1", "--local-epochs", "1"]
    words += ["--batch-size", "8", "--optimizer", "adamw", "--learning-rate", "0.02"]
    found = run(tmp_path, *words, "--partition", "iid")
    assert (found["federated"], found["partition"], found["settings"]["rounds"]) == (2, "iid", 1)
    assert [entry["round"] for entry in found["history"]] == [0, 1]
    assert found["history"][1]["tasks"]["marital"]["examples"] == 60
    assert sum(found["history"][1]["gates"]["income"]["income"]["load"]) == pytest.approx(1)
    assert found["test"]["marital"]["examples"] == 60
    assert found["test"]["marital"]["loss"] < found["history"][0]["tasks"]["marital"]["loss"]
