"""Gradient boosting, one LightGBM model per task: what the networks have to be compared with on tables.

Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017. Needs the extra `tabular`.
Inputs are those of the networks: the same numeric columns, not scaled, and the declared values of the same categorical
columns as categories of their own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from common.data import SplitName
from common.errors import ConfigError
from common.metrics import compute_metrics
from experiments.results import TrainResult
from experiments.rows import examples_of, limited

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.tasks import TaskSpec
    from experiments.problems import Problem

log = logging.getLogger("fedmtl.experiments")
MODEL: Final = "lightgbm"
_SPLITS: Final[tuple[SplitName, ...]] = ("train", "test")
#: Smallest probability of a class; keeps its logarithm finite.
SMALLEST: Final = 1e-12


@dataclass(frozen=True)
class Boosting:
    """How the trees are grown.

    Attributes:
        trees: how many (of several classes, so many for each).
        leaves: most leaves of a tree.
        learning_rate: what a tree's values are multiplied by.
        threads: CPU threads; None: all cores.
    """

    trees: int = 300
    leaves: int = 63
    learning_rate: float = 0.05
    threads: int | None = None


def boosted(problem: Problem, boosting: Boosting, seed: int, limit: int | None = None) -> TrainResult:
    """Train a model for each task and measure it on the test rows.

    Args:
        problem: tasks, inputs and rows.
        boosting: how.
        seed: of the choices that LightGBM makes.
        limit: most rows of each split; None: all.

    Raises:
        ConfigError: LightGBM is not installed.
        DataError: the rows can't be had or do not fit the tasks.
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise ConfigError("the baseline needs LightGBM, which is not installed: install the extra `tabular`")
    tasks = limited(problem.tasks, limit)
    training, held_out = (examples_of(problem, tasks, split, seed) for split in _SPLITS)
    test, seconds, rows, leaves = {}, 0.0, 0, 0
    for name, task in tasks.items():
        found = _boosted_task(task, training[name], held_out[name], problem.inputs, boosting, seed)
        log.info("lightgbm on %s: %s", name, found.row)
        test[name] = found.row
        seconds += found.seconds
        rows += found.rows
        leaves += found.leaves
    return TrainResult(
        model=MODEL,
        dataset=problem.name,
        seed=seed,
        epochs=boosting.trees,
        parameters=leaves,
        seconds=seconds,
        examples_per_second=rows * boosting.trees / seconds,
        settings={"trees": boosting.trees, "leaves": boosting.leaves, "learning_rate": boosting.learning_rate}
        | {"threads": boosting.threads, "limit": limit, "counted": "an epoch is a tree, a parameter a leaf"},
        test=test,
    )


@dataclass(frozen=True)
class _Boosted:
    row: dict[str, float]
    seconds: float
    rows: int
    leaves: int


def _boosted_task(
    task: TaskSpec, train: Examples, test: Examples, inputs: Mapping[str, Any], boosting: Boosting, seed: int
) -> _Boosted:
    import lightgbm

    features, categorical = table_of(train, inputs)
    classes = task.num_outputs
    objective = "regression" if task.kind == "regression" else "binary" if classes == 2 else "multiclass"
    parameters = {
        "objective": objective,
        "num_leaves": boosting.leaves,
        "learning_rate": boosting.learning_rate,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": boosting.threads or 0,
        "verbosity": -1,
        **({"num_class": classes} if objective == "multiclass" else {}),
    }
    began = time.perf_counter()
    data = lightgbm.Dataset(features, train.labels, categorical_feature=categorical, weight=train.weights)
    booster = lightgbm.train(parameters, data, num_boost_round=boosting.trees)
    seconds = time.perf_counter() - began
    outputs = _outputs(task, np.asarray(booster.predict(table_of(test, inputs)[0])))
    leaves = sum(tree["num_leaves"] for tree in booster.dump_model()["tree_info"])
    row = {**compute_metrics(task, outputs, test.labels), "loss": _loss(task, outputs, test.labels)}
    return _Boosted({**row, "examples": len(test)}, seconds, len(train), leaves)


def table_of(examples: Examples, inputs: Mapping[str, Any]) -> tuple[NDArray[np.float64], list[int]]:
    """Rows as LightGBM reads them: (N, A + K), NaN where a value is missing or was not declared.

    Args:
        examples: rows with all input columns.
        inputs: the keys numeric, categorical and missing of a model section: A and K columns.

    Returns:
        the table, and which of its columns are categorical: they hold the number of the declared value.

    Raises:
        DataError: a numeric column holds something else.
    """
    missing = inputs.get("missing", "?")
    columns = [_numbers(examples, name, missing) for name in inputs.get("numeric", {})]
    categorical = list(range(len(columns), len(columns) + len(inputs.get("categorical", {}))))
    for name, values in inputs.get("categorical", {}).items():
        place = {value: float(number) for number, value in enumerate(values)}
        found = (place.get(value.strip(), np.nan) for value in examples.categories(name))
        columns.append(np.fromiter(found, dtype=np.float64, count=len(examples)))
    return np.stack(columns, axis=1), categorical


def _numbers(examples: Examples, name: str, missing: str) -> NDArray[np.float64]:
    values = examples.columns[name]
    if isinstance(values, np.ndarray):
        return examples.numbers(name, allow_missing=True)
    cleaned = ["" if value.strip() == missing else value.strip() for value in values]
    return dataclasses.replace(examples, columns={name: cleaned}).numbers(name, allow_missing=True)


def _outputs(task: TaskSpec, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (N,), or the logarithms of the classes' probabilities (N, C)."""
    if task.kind == "regression":
        return predicted
    if predicted.ndim == 1:
        predicted = np.stack([1 - predicted, predicted], axis=1)
    return np.log(np.maximum(predicted, SMALLEST))


def _loss(task: TaskSpec, outputs: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Mean squared error, or cross-entropy; a task's other losses are the networks' affair."""
    if task.kind == "regression":
        return float(np.mean((outputs - labels) ** 2))
    return float(-np.mean(outputs[np.arange(len(labels)), labels]))
