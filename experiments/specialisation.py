"""Which inputs a gate sends to which expert.

An expert's lift for a value of a column is its mean weight over the rows that have the value, by its mean weight over
all rows: 1 says that the gate does not look at the value, 2 that the expert has twice its usual weight there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.families.base import Family, MultiTaskModel

#: Values of fewer rows, or of a smaller part of them, are left out: their means are too noisy to be told apart.
LEAST_ROWS: Final = 30
LEAST_SHARE: Final = 0.005
#: How many values are kept of each expert.
TOP: Final = 5
#: Rows of one pass.
CHUNK: Final = 4096
MISSING: Final = "missing"


@dataclass(frozen=True)
class Coded:
    """A column as categories.

    Attributes:
        name: the column.
        values: (C,), what the categories are called.
        codes: (N,), each row's category.
    """

    name: str
    values: Sequence[str]
    codes: NDArray[np.int64]


def specialise(model: MultiTaskModel, family: Family, task: str, examples: Examples) -> dict[str, dict[str, Any]]:
    """Which of these rows a task's gates send to which expert.

    Args:
        model: trained, of the family; it is used in evaluation mode, and left in the mode it was in.
        family: says which columns are inputs.
        task: one of the model's.
        examples: rows of the task with the family's input columns; a few thousand are enough.

    Returns:
        Gate to ``{"experts": [{"expert", "load", "top": [{"column", "value", "lift", "share", "rows"}, ...]}, ...]}``,
        plain data: the expert's blueprint group, its mean weight, and the values with the highest lift, of which
        `share` of the rows, `rows` in number, have each. Empty for a model without gates.

    Raises:
        DataError: a row can't be read.
    """
    experts = model.gates(task)
    if not experts or not len(examples):
        return {}
    encoded = family.encode(task, examples)
    parts: dict[str, list[NDArray[np.float64]]] = {gate: [] for gate in experts}
    training = model.training
    model.eval()
    try:
        for start in range(0, len(examples), CHUNK):
            batch = encoded.collate(np.arange(start, min(start + CHUNK, len(examples))))
            for gate, weights in gate_weights(model, task, batch).items():
                parts[gate].append(weights.double().numpy())
    finally:
        model.train(training)
    columns = list(coded_columns(family, examples))
    return {gate: {"experts": by_expert(np.concatenate(parts[gate]), columns, experts[gate])} for gate in experts}


def gate_weights(model: MultiTaskModel, task: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each gate of a task gives each expert for each row.

    A gate tells its sum over the rows of a pass; so each row is a pass of its own here, all of them computed at once.

    Args:
        model: on the CPU, in evaluation mode.
        task: one of the model's.
        batch: B rows.

    Returns:
        Gate to (B, E) in the order of `MultiTaskModel.gates`; rows sum to 1. Empty for a model without gates.
    """

    def of_row(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
        alone = {name: tensor.unsqueeze(0) for name, tensor in row.items()}
        uses = model.training_pass({task: slice(0, 1)}, alone).gates.get(task, {})
        return {gate: use.mass for gate, use in uses.items()}

    if not model.gates(task):
        return {}
    with torch.no_grad():
        found: dict[str, Tensor] = torch.func.vmap(of_row)(dict(batch))
    return found


def coded_columns(family: Family, examples: Examples) -> Iterator[Coded]:
    """The family's input columns as categories: a numeric one cut at its quartiles."""
    config = family.describe().get("config", {})
    missing = {"", str(config.get("missing", ""))}
    for name in family.feature_columns:
        if name in config.get("numeric", {}):
            yield quartiles(name, _numbers(examples.categories(name)))
        else:
            yield categories(name, [MISSING if v in missing else v for v in map(str.strip, examples.categories(name))])


def categories(name: str, values: Sequence[str]) -> Coded:
    """A column of names."""
    codes: dict[str, int] = {}
    found = np.fromiter((codes.setdefault(value, len(codes)) for value in values), dtype=np.int64, count=len(values))
    return Coded(name, list(codes), found)


def quartiles(name: str, numbers: NDArray[np.float64]) -> Coded:
    """A column of numbers as ranges of about a quarter of the rows each; fewer where many numbers are equal.

    Args:
        name: the column.
        numbers: (N,), NaN where there is none.
    """
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return Coded(name, [MISSING], np.zeros(len(numbers), dtype=np.int64))
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="lower"))
    edges = edges[edges < known.max()]
    codes = np.searchsorted(edges, numbers, side="left")
    codes[np.isnan(numbers)] = len(edges) + 1
    texts = [f"{edge:.6g}" for edge in edges]
    if not texts:
        return Coded(name, [f"{known[0]:.6g}", MISSING], codes.astype(np.int64))
    between = [f"above {low}, up to {high}" for low, high in itertools.pairwise(texts)]
    return Coded(name, [f"up to {texts[0]}", *between, f"above {texts[-1]}", MISSING], codes.astype(np.int64))


def by_expert(
    weights: NDArray[np.float64], columns: Sequence[Coded], experts: Sequence[str], top: int = TOP
) -> list[dict[str, Any]]:
    """What each expert is used for.

    Args:
        weights: (N, E), at least 0.
        columns: of N rows each.
        experts: E names.
        top: most values of each expert.

    Returns:
        E entries as `specialise` has them; only values with a lift above 1, the highest first. An expert without any
        weight has none.
    """
    count = len(weights)
    load = weights.mean(axis=0)
    least = max(LEAST_ROWS, math.ceil(LEAST_SHARE * count))
    found: list[list[dict[str, Any]]] = [[] for _ in experts]
    for column in columns:
        rows = np.bincount(column.codes, minlength=len(column.values))
        for position, heap in enumerate(found):
            if load[position] == 0:
                continue
            sums = np.bincount(column.codes, weights=weights[:, position], minlength=len(column.values))
            for code in np.flatnonzero(rows >= least).tolist():
                lift = float(sums[code] / rows[code] / load[position])
                if lift > 1 and rows[code] < count:
                    share = float(rows[code] / count)
                    value = {"column": column.name, "value": column.values[code], "lift": lift, "share": share}
                    heap.append({**value, "rows": int(rows[code])})
    return [
        {
            "expert": expert,
            "load": float(load[position]),
            "top": sorted(heap, key=lambda found: (-found["lift"], found["column"], found["value"]))[:top],
        }
        for position, (expert, heap) in enumerate(zip(experts, found, strict=True))
    ]


def _numbers(values: Sequence[str]) -> NDArray[np.float64]:
    """NaN where there is no number: the family's encoder has refused what should be one."""
    return np.array([_number(value.strip()) for value in values], dtype=np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
