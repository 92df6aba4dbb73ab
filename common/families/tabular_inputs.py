"""How tabular rows become numbers. It is declared in the configuration, so all clients agree without pooling data:

* a numeric column gives two inputs: the scaled value (0 where missing) and a missing indicator, which a column that
  is never missing can do without;
* a categorical column gives one input per declared value and a missing indicator; a value that was not declared gives
  zeros in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import DataError
from common.families.encoded_rows import EncodedRows
from common.families.encoded_text import weights_of
from common.families.tabular_config import NumericColumn, TabularConfig

if TYPE_CHECKING:
    from common.data.examples import Examples


def encode_rows(config: TabularConfig, examples: Examples, *, regression: bool) -> EncodedRows:
    """The rows of one task as numbers.

    Args:
        config: says which columns are inputs, and how.
        examples: with at least those columns.
        regression: whether labels are scores rather than class ids.

    Raises:
        DataError: a column is not there, or a value is no number; names source and rows.
    """
    wanted = (*config.numeric, *config.categorical)
    if missing := [column for column in wanted if column not in examples.columns]:
        raise DataError(f"{examples.source}: the model needs the columns {missing}, which are not there")
    numeric = [
        part
        for name, column in config.numeric.items()
        for part in _scaled(_numbers(examples, name, config.missing), column, name, examples)
    ]
    codes, start = [], 0
    for name, values in config.categorical.items():
        codes.append(_codes(examples.categories(name), values, config.missing, start))
        start += len(values) + 1
    count = len(examples)
    return EncodedRows(
        numeric=np.stack(numeric, axis=1) if numeric else np.empty((count, 0), dtype=np.float32),
        codes=np.stack(codes, axis=1) if codes else np.empty((count, 0), dtype=np.int32),
        width=config.one_hot_width,
        labels=torch.from_numpy(np.array(examples.labels, dtype=np.float32 if regression else np.int64)),
        weights=weights_of(examples),
    )


def _numbers(examples: Examples, name: str, missing: str) -> NDArray[np.float64]:
    """A numeric column, NaN where missing; `DataError` with row numbers where there is no number."""
    values = examples.columns[name]
    if not isinstance(values, np.ndarray):
        kept = {value: "" if value.strip() == missing else value.strip() for value in set(values)}
        examples = replace(examples, columns={name: list(map(kept.__getitem__, values))})
    return examples.numbers(name, allow_missing=True)


def _scaled(
    numbers: NDArray[np.float64], column: NumericColumn, name: str, examples: Examples
) -> list[NDArray[np.float32]]:
    """Scaled values, 0 where missing, and the missing indicator if the column has one; each (N,)."""
    absent = np.isnan(numbers)
    if not column.indicator:
        _refuse(absent, examples, f"column {name!r} has no indicator, so no value can be missing")
    values = np.where(absent, 0.0, numbers)
    if column.log1p:
        _refuse(values < 0, examples, f"column {name!r} has log1p set, so it can't be negative")
        values = np.log1p(values)
    scaled = np.where(absent, 0.0, (values - column.mean) / column.std)
    inputs = [scaled.astype(np.float32)]
    return [*inputs, absent.astype(np.float32)] if column.indicator else inputs


def _refuse(wrong: NDArray[np.bool_], examples: Examples, rule: str) -> None:
    """`DataError` with row numbers if any row is wrong."""
    if wrong.any():
        from common.data.problems import rows_text

        raise DataError(f"{examples.source}: {rule}; {rows_text(examples.rows[wrong])} is")


def _codes(found: Sequence[str], declared: Sequence[str], missing: str, start: int) -> NDArray[np.int32]:
    """Position of each value's one-hot entry, counted from `start`; the missing indicator is the column's last."""
    absent = start + len(declared)
    position = {"": absent, missing: absent} | {value: start + i for i, value in enumerate(declared)}
    codes = {value: position.get(value.strip(), -1) for value in set(found)}  # once a value, of which there are few
    return np.fromiter(map(codes.__getitem__, found), dtype=np.int32, count=len(found))
