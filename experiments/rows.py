"""A problem's rows as a model reads them. Tasks over the same rows have them read and encoded once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from common.data import SplitName, load_examples
from common.data.checks import check_labels
from common.errors import DataError
from common.families.encoded_rows import EncodedRows

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.families.base import EncodedSplit, Family
    from common.tasks import TaskSpec
    from experiments.problems import Problem

log = logging.getLogger("fedmtl.experiments")
#: A regression whose labels have a root mean square beyond these is told of.
USUAL_LABELS: Final = (0.05, 20.0)
#: Rows that are kept to be looked at, beside their encoded form.
SHOWN: Final = 5000
SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """One split of every task.

    Attributes:
        encoded: task to its rows as the model reads them.
        shown: task to the first `SHOWN` of them as they were read.
    """

    encoded: Mapping[str, EncodedSplit]
    shown: Mapping[str, Examples]


@dataclass(frozen=True)
class Rows:
    """Every task's rows."""

    train: Split
    validation: Split
    test: Split


def limited(tasks: Mapping[str, TaskSpec], rows: int | None) -> dict[str, TaskSpec]:
    """The tasks with at most so many rows in each split, the same ones for all tasks; None: all rows."""
    if rows is None:
        return dict(tasks)
    found = {}
    for name, task in tasks.items():
        limits = task.data.limits.model_copy(update=dict.fromkeys(SPLITS, rows))
        found[name] = task.model_copy(update={"data": task.data.model_copy(update={"limits": limits})})
    return found


def input_columns(problem: Problem) -> tuple[str, ...]:
    """The columns that a problem's models read."""
    return (*problem.inputs.get("numeric", {}), *problem.inputs.get("categorical", {}))


def examples_of(problem: Problem, tasks: Mapping[str, TaskSpec], split: SplitName, seed: int) -> dict[str, Examples]:
    """One split of each task with the problem's input columns; tasks over the same rows share the columns.

    Raises:
        DataError: the rows can't be had or do not fit a task.
    """
    columns = input_columns(problem)
    first, *others = tasks.values()
    together = [task for task in others if (task.data, task.weight) == (first.data, first.weight)]
    labels = {task.label for task in together if task.label not in {first.label, *columns}}
    read = load_examples(first, split, data=problem.folder, shard=None, seed=seed, columns=(*columns, *labels))
    inputs = replace(read, columns={name: read.columns[name] for name in columns})
    found = {first.name: inputs}
    for task in others:
        if task.label in labels:
            try:
                ids = check_labels(task, [_plain(value) for value in read.columns[task.label]], (), read.source)
            except DataError:
                pass  # read by itself below, for a message that names rows of the file
            else:
                found[task.name] = replace(inputs, task=task.name, labels=ids)
                continue
        found[task.name] = load_examples(task, split, data=problem.folder, shard=None, seed=seed, columns=columns)
    return found


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def encoded_rows(problem: Problem, family: Family, tasks: Mapping[str, TaskSpec], seed: int) -> Rows:
    """All splits of these tasks as the family reads them.

    Raises:
        DataError: the rows can't be had or do not fit the tasks.
    """
    return Rows(**{split: encoded_split(problem, family, tasks, split, seed) for split in SPLITS})


def _tell_of_scale(task: str, labels: NDArray[Any]) -> None:
    size = float(np.sqrt(np.mean(np.square(labels, dtype=np.float64))))
    if not USUAL_LABELS[0] <= size <= USUAL_LABELS[1]:
        log.warning(
            "task %s: its labels are of the size %.3g, and its loss is the square of what is wrong in that unit: "
            "beside it other tasks count for %s. Give labels in a unit in which they are of about the size 1",
            task,
            size,
            "nothing" if size > 1 else "all",
        )


def encoded_split(
    problem: Problem, family: Family, tasks: Mapping[str, TaskSpec], split: SplitName, seed: int
) -> Split:
    """One split; else as `encoded_rows`."""
    found: dict[str, EncodedSplit] = {}
    shown: dict[str, Examples] = {}
    done: list[tuple[Examples, EncodedRows]] = []
    for name, examples in examples_of(problem, tasks, split, seed).items():
        shown[name] = examples.take(range(min(SHOWN, len(examples))))
        if split == "train" and tasks[name].kind == "regression":
            _tell_of_scale(name, examples.labels)
        same = next((encoded for other, encoded in done if other.columns is examples.columns), None)
        if same is not None:
            dtype = np.float32 if tasks[name].kind == "regression" else np.int64
            found[name] = replace(same, labels=torch.from_numpy(examples.labels.astype(dtype)))
            continue
        encoded = found[name] = family.encode(name, examples)
        if isinstance(encoded, EncodedRows):
            done.append((examples, encoded))
    return Split(found, shown)
