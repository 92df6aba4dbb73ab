"""Raw values to checked text, labels and features; everything refused here never reaches training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.data.examples import Column
from common.data.problems import quoted, rows_text
from common.errors import DataError
from common.tasks import ANYTHING_ELSE, TaskSpec

T = TypeVar("T")
#: Sums of weights must stay within float32.
LARGEST_WEIGHT: Final = 1e30


def check_text(values: Sequence[object], column: str, source: str) -> list[str]:
    """A text column; an empty text is allowed, as GLUE itself has some.

    Raises:
        DataError: a value is no string, such as None or a number.
    """
    text = [value for value in values if isinstance(value, str)]
    if len(text) != len(values):
        bad = [position for position, value in enumerate(values) if not isinstance(value, str)]
        raise _refused(values, bad, f"text column {column!r}", "strings", source)
    return text


def check_labels(
    task: TaskSpec, values: Sequence[object], missing: Collection[str], source: str
) -> NDArray[np.int64] | NDArray[np.float32]:
    """The label column as class ids (int64) or scores (float32), shape (N,).

    Raises:
        DataError: a label is absent, of no class, no finite number, or outside `label_range`.
    """
    if task.kind == "regression":
        decode, allowed = _score_decoder(task)
        scores = _decode(values, decode, missing, f"label column {task.label!r}", allowed, source)
        return np.array(scores, dtype=np.float32)
    decode_class, allowed = _class_decoder(task)
    ids = _decode(values, decode_class, missing, f"label column {task.label!r}", allowed, source)
    return np.array(ids, dtype=np.int64)


def check_feature(values: Sequence[object], column: str, missing: Collection[str], source: str) -> Column:
    """A feature column: text as ``list[str]`` ("" where absent), numbers as float64 (NaN where absent).

    Raises:
        DataError: it holds text and numbers mixed, or something else.
    """
    types = set(map(type, values)) - {type(None)}
    if all(issubclass(kind, str) for kind in types):
        absent = {None, *missing}
        return ["" if value in absent else str(value) for value in values]
    if all(issubclass(kind, int | float) for kind in types):
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    bad = [at for at, value in enumerate(values) if value is not None and not isinstance(value, int | float)]
    raise _refused(values, bad, f"feature column {column!r}", "either all strings or all numbers", source)


def check_weights(values: Sequence[object], column: str, source: str) -> NDArray[np.float32]:
    """A column of rows' weights, shape (N,).

    Raises:
        DataError: a weight is absent, no finite number, or below 0.
    """
    decoded = _decode(values, _weight, (), f"weight column {column!r}", "finite numbers of 0 or more", source)
    return np.array(decoded, dtype=np.float32)


def _weight(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        weight = float(value)
    except ValueError:
        return None
    return weight if 0 <= weight <= LARGEST_WEIGHT else None


def _class_decoder(task: TaskSpec) -> tuple[Callable[[object], int | None], str]:
    """Raw value to class id (None: no class), and the allowed values in words."""
    table = {value: i for i, label in enumerate(task.labels) for value in (label.values or (label.name,))}
    other = table.pop(ANYTHING_ELSE, None)
    allowed = ", ".join(repr(value) for value in table) + (", or anything else" if other is not None else "")
    # Ids stand for classes only where no raw value is given and no class name could be taken for an id.
    if not any(label.values or label.name.lstrip("-").isdigit() for label in task.labels):
        table |= {str(i): i for i in range(len(task.labels))}
        allowed += f", or the ids 0 to {len(task.labels) - 1}"

    def decode(value: object) -> int | None:
        if isinstance(value, bool):
            return table.get(str(value).lower(), table.get(str(int(value)), other))
        if isinstance(value, float):
            if not math.isfinite(value):
                return None
            return table.get(f"{value:.15g}", table.get(repr(value), other))
        return table.get(value if isinstance(value, str) else str(value), other)

    return decode, allowed


def _score_decoder(task: TaskSpec) -> tuple[Callable[[object], float | None], str]:
    low, high = task.label_range or (-math.inf, math.inf)
    allowed = "finite numbers" if task.label_range is None else f"numbers from {low:g} to {high:g}"

    def decode(value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        try:
            score = float(value)
        except ValueError:
            return None
        return score if math.isfinite(score) and low <= score <= high else None

    return decode, allowed


def _decode(
    values: Sequence[object],
    decode: Callable[[object], T | None],
    missing: Collection[str],
    what: str,
    allowed: str,
    source: str,
) -> list[T]:
    """Decode each value once per distinct (type, value); refuse the rows that decode to None."""
    known: dict[tuple[type, object], T | None] = {}
    decoded: list[T] = []
    bad: list[int] = []
    for position, value in enumerate(values):
        key = (type(value), value)
        try:
            result = known[key]
        except KeyError:
            absent = value is None or value == "" or (isinstance(value, str) and value in missing)
            result = known[key] = None if absent else decode(value)
        except TypeError:  # a list or mapping, which no dictionary takes as a key
            result = None
        if result is None:
            bad.append(position)
        else:
            decoded.append(result)
    if bad:
        raise _refused(values, bad, what, allowed, source)
    return decoded


def _refused(values: Sequence[object], bad: Sequence[int], what: str, allowed: str, source: str) -> DataError:
    found = quoted(values[position] for position in bad)
    return DataError(
        f"{source}: {what}, {rows_text(position + 1 for position in bad)}: found {found}; allowed: {allowed}"
    )
