"""Which columns of a table are inputs, how numbers are scaled and which values categories take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.data.problems import quoted, rows_text
from common.data.tables import Table, require_columns
from common.errors import DataError

#: A categorical column with more values is an identifier or free text, of which nothing can be learnt.
MOST_VALUES: Final = 1000
#: A column without negative numbers whose deviation is this many times its mean spans magnitudes: log(1 + x) is scaled.
SKEWED: Final = 2.0


@dataclass(frozen=True)
class Choice:
    """Which columns are to be what, before a file was looked at.

    Attributes:
        numeric: columns to scale.
        categorical: columns whose values are to be listed.
        rest: what becomes of the columns that nothing names: ``leave`` them, take them as ``numeric`` or
            ``categorical``, or ``judge`` each by its values.
        left_out: columns that are no inputs.
        distinct: a column of at most so many different numbers is judged categorical.
        missing: what stands for an unknown value beside an empty field.
    """

    numeric: Sequence[str]
    categorical: Sequence[str]
    rest: str
    left_out: frozenset[str]
    distinct: int = 20
    missing: str = "?"


def found_inputs(table: Table, choice: Choice) -> dict[str, dict[str, Any]]:
    """The sections ``numeric`` and ``categorical`` of a model, as plain data, for the rows of a table.

    Columns come in the order of the table. Numbers are rounded to 6 significant digits.

    Raises:
        DataError: a named column is not there, a numeric one holds something else or nothing, or a categorical one has
            more than `MOST_VALUES` values.
    """
    require_columns([*choice.numeric, *choice.categorical], list(table.columns), table.source)
    numeric: dict[str, Any] = {}
    categorical: dict[str, Any] = {}
    for name in table.columns:
        if name in choice.left_out:
            continue
        kind = "numeric" if name in choice.numeric else "categorical" if name in choice.categorical else choice.rest
        if kind == "leave":
            continue
        values = [_text(value, choice.missing) for value in table.columns[name]]
        if kind == "judge":
            kind = "numeric" if _is_numeric(values, choice.distinct) else "categorical"
        if kind == "numeric":
            numeric[name] = _scale(values, name, table.source)
        else:
            categorical[name] = _values(values, name, table.source)
    return {"numeric": numeric, "categorical": categorical}


def _text(value: object, missing: str) -> str:
    """A raw value as category names are written, `""` where there is none (see `Examples.categories`)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float):
        return f"{float(value):.15g}"
    text = str(value).strip()
    return "" if text == missing else text


def _number(text: str) -> float:
    """NaN where there is no finite number."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _is_numeric(values: Sequence[str], distinct: int) -> bool:
    found = set(values) - {""}
    return len(found) > distinct and not any(math.isnan(_number(value)) for value in found)


def _scale(values: Sequence[str], name: str, source: str) -> dict[str, Any]:
    """Mean and deviation of the numbers that there are, of log(1 + x) where they span magnitudes."""
    known = {value: _number(value) for value in set(values) if value}
    if bad := [at for at, value in enumerate(values, 1) if value and math.isnan(known[value])]:
        found = quoted(values[at - 1] for at in bad)
        raise DataError(
            f"{source}: column {name!r} is to be numeric, but holds no number in {rows_text(bad)}: found {found}; "
            "list it under categorical or leave_out, or name what is missing with `missing`"
        )
    numbers = np.array([known[value] for value in values if value], dtype=np.float64)
    if not len(numbers):
        raise DataError(f"{source}: column {name!r} is to be numeric, but holds no value at all; leave it out")
    scale: dict[str, Any] = {}
    if numbers.min() >= 0 and numbers.std() > SKEWED * numbers.mean():
        numbers = np.log1p(numbers)
        scale["log1p"] = True
    return scale | {"mean": _rounded(numbers.mean()), "std": _rounded(numbers.std()) or 1.0}


def _rounded(number: np.floating[Any] | NDArray[np.float64]) -> float:
    return float(f"{float(number):.6g}")


def _values(values: Sequence[str], name: str, source: str) -> list[str]:
    found = sorted(set(values) - {""}, key=_order)
    if len(found) > MOST_VALUES:
        raise DataError(
            f"{source}: column {name!r} has {len(found):,} different values, more than the {MOST_VALUES:,} that a "
            "categorical column may have; leave it out, or list it under numeric"
        )
    if not found:
        raise DataError(f"{source}: column {name!r} holds no value at all; leave it out")
    return found


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by size, then texts by the alphabet."""
    number = _number(value)
    return math.isnan(number), 0.0 if math.isnan(number) else number, value


def sections(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a model section takes, without those that are empty."""
    return {key: inputs[key] for key in ("numeric", "categorical", "missing") if inputs.get(key)}
