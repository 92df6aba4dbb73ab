"""Results in MLflow's store: a real one, SQLite, in the test's folder."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from experiments.results import TrainResult
from experiments.tracking import gate_table, track

RESULT = TrainResult(
    model="mmoe",
    dataset="people",
    seed=3,
    epochs=2,
    parameters=100,
    seconds=1.5,
    examples_per_second=2000.0,
    settings={"batch_size": 16, "config": {"family": "mmoe"}},
    test={"income": {"auc": 0.9, "loss": 0.3, "examples": 60}},
    history=[
        {
            "epoch": epoch,
            "tasks": {"income": {"auc": 0.7 + epoch / 10, "loss": 0.5}},
            "gates": {"income": {"income": {"load": [0.25, 0.75], "entropy": 0.5}}},
        }
        for epoch in (1, 2)
    ],
)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader")  # in MLflow's own queries
def test_a_result_is_a_run_with_parameters_metrics_by_epoch_and_artefacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_id = track(RESULT)
    assert run_id is not None
    assert (tmp_path / "mlflow.db").exists()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri="sqlite:///mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["model"], run.data.params["batch_size"]) == ("mmoe", "16")
    by_epoch = client.get_metric_history(run_id, "validation/income/auc")
    assert {metric.step: round(metric.value, 6) for metric in by_epoch} == {1: 0.8, 2: 0.9}
    assert run.data.metrics["test/income/auc"] == 0.9
    assert run.data.metrics["gates/income/income/entropy"] == 0.5
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["gates.csv", "mmoe-people-s3.json"]


def test_without_the_extra_nothing_is_tracked_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with caplog.at_level(logging.INFO, logger="fedmtl.experiments"):
        assert track(RESULT) is None
    assert "not installed" in caplog.text


def test_the_gate_table_has_a_row_per_epoch_gate_and_expert() -> None:
    lines = gate_table(RESULT.history).splitlines()
    assert lines[0] == "step,task,gate,expert,load,entropy"
    assert lines[1:3] == ["1,income,income,0,0.25,0.5", "1,income,income,1,0.75,0.5"]
    assert len(lines) == 5
    assert gate_table([{"epoch": 1, "tasks": {}}]) == ""
