"""Results in an MLflow store, where the extra `tracking` is installed: ``mlflow ui`` then shows them.

The store is a local SQLite file unless MLFLOW_TRACKING_URI names another. Nothing is sent anywhere else: MLflow's own
telemetry is switched off before it is imported.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from experiments.results import TrainResult

if TYPE_CHECKING:
    from mlflow.entities import Metric

log = logging.getLogger("fedmtl.experiments")
#: Where runs are kept when nothing else is said, under the working directory.
DEFAULT_STORE: Final = "sqlite:///mlflow.db"
EXPERIMENT: Final = "fedmtl"
#: Most metrics and parameters that MLflow takes at a time.
_METRICS: Final = 1000
_PARAMETERS: Final = 100
#: Longest value of a parameter, in characters.
_LONGEST: Final = 6000


def track(result: TrainResult, files: Sequence[Path] = (), store: str | None = None) -> str | None:
    """Keep a result as an MLflow run: parameters, a metric per task and epoch or round, test metrics, artefacts.

    Args:
        result: what was found.
        files: further artefacts.
        store: MLflow's tracking URI; left out: MLFLOW_TRACKING_URI, or `DEFAULT_STORE`.

    Returns:
        the run's id; None where MLflow is not installed, which is said once per call in the log.
    """
    if importlib.util.find_spec("mlflow") is None:
        log.info("mlflow is not installed, so the run is not tracked: install the extra `tracking`, or give --no-track")
        return None
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Param

    store = store or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    client = MlflowClient(tracking_uri=store)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = client.create_experiment(EXPERIMENT) if known is None else known.experiment_id
    run = client.create_run(experiment, run_name=result.name)
    run_id: str = run.info.run_id
    parameters = [Param(name, str(value)[:_LONGEST]) for name, value in _parameters(result).items()]
    for start in range(0, len(parameters), _PARAMETERS):
        client.log_batch(run_id, params=parameters[start : start + _PARAMETERS])
    metrics = list(_metrics(result))
    for start in range(0, len(metrics), _METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
    client.log_text(run_id, result.to_json() + "\n", f"{result.name}.json")
    if table := gate_table(result.history):
        client.log_text(run_id, table, "gates.csv")
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    log.info("tracked as run %s in %s", run_id, store)
    return run_id


def gate_table(history: Iterable[Mapping[str, Any]]) -> str:
    """What the gates did, as CSV: a row per epoch or round, task, gate and expert; empty where there are no gates."""
    rows = [
        (_step(entry), task, gate, expert, share, use["entropy"])
        for entry in history
        for task, gates in entry.get("gates", {}).items()
        for gate, use in gates.items()
        for expert, share in enumerate(use["load"])
    ]
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("step", "task", "gate", "expert", "load", "entropy"))
    writer.writerows(rows)
    return text.getvalue()


def _parameters(result: TrainResult) -> dict[str, object]:
    named = ("model", "dataset", "seed", "epochs", "parameters", "federated", "partition", "target_task")
    return {**result.settings, **{name: getattr(result, name) for name in named}}


def _metrics(result: TrainResult) -> Iterable[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for entry in result.history:
        for task, row in entry["tasks"].items():
            for name, value in row.items():
                if name != "examples":
                    yield Metric(f"validation/{task}/{name}", value, now, _step(entry))
        for task, gates in entry.get("gates", {}).items():
            for gate, use in gates.items():
                yield Metric(f"gates/{task}/{gate}/entropy", use["entropy"], now, _step(entry))
    last = _step(result.history[-1]) if result.history else 0
    for task, row in result.test.items():
        for name, value in row.items():
            yield Metric(f"test/{task}/{name}", value, now, last)
    yield Metric("seconds", result.seconds, now, last)
    yield Metric("examples_per_second", result.examples_per_second, now, last)


def _step(entry: Mapping[str, Any]) -> int:
    return int(entry["epoch"] if "epoch" in entry else entry["round"])
