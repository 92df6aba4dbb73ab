"""The `model:` sections of families over tabular rows, which `config` joins. Imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.strict_model import StrictModel

Width = Annotated[int, Field(ge=1)]
Widths = Annotated[list[Width], Field(min_length=1)]


@dataclass(frozen=True)
class Flexible:
    """Marks the widths that `common.families.matching` changes to reach a number of parameters."""


#: Widths of what a family shares or has beside the towers.
FlexibleWidths = Annotated[Widths, Flexible()]


class NumericColumn(StrictModel):
    """How one numeric column is scaled: ``(x - mean) / std``, after ``log(1 + x)`` where asked."""

    mean: float = Field(default=0.0, allow_inf_nan=False)
    """Subtracted; declared, as no party sees all rows. Of ``log(1 + x)`` when `log1p` is set."""

    std: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Divided by."""

    log1p: bool = False
    """Take ``log(1 + x)`` first, for amounts that span magnitudes; values must not be below 0."""

    indicator: bool = True
    """Give the column a second input that says whether its value is missing; without it none may be missing."""


class TabularConfig(StrictModel):
    """What all of them have: the input columns, and a tower of each task's own at the end."""

    numeric: dict[str, NumericColumn] = Field(default_factory=dict)
    """Numeric input columns."""

    categorical: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    """Categorical input columns and the values each may take; any other value counts as none of them."""

    missing: str = "?"
    """What stands for an unknown value; it has an indicator of its own in every column, unless declared otherwise."""

    tower: list[Width] = Field(default=[16])
    """Widths of the hidden layers of each task's tower; empty for a linear head."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after every hidden layer."""

    @model_validator(mode="after")
    def _columns_make_sense(self) -> Self:
        if not self.numeric and not self.categorical:
            raise ValueError("no input column; declare some under numeric or categorical")
        if both := self.numeric.keys() & self.categorical.keys():
            raise ValueError(f"declared both numeric and categorical: {sorted(both)}")
        if self.missing != self.missing.strip():
            raise ValueError(f"missing: {self.missing!r} has blanks around it, and fields are read without; drop them")
        for name, values in self.categorical.items():
            if wrong := [value for value in values if not value or value != value.strip()]:
                raise ValueError(
                    f"categorical column {name!r}: {wrong[0]!r} is empty or has blanks around it; fields are read "
                    "without blanks, and an empty one is a missing value, so it would never be found"
                )
            if len(set(values)) != len(values):
                raise ValueError(f"categorical column {name!r} lists a value twice")
            if self.missing in values:
                raise ValueError(f"categorical column {name!r} lists the missing marker {self.missing!r} as a value")
        return self

    @property
    def numeric_width(self) -> int:
        """Inputs that come from numeric columns: the scaled value of each, and its missing indicator if it has one."""
        return sum(1 + column.indicator for column in self.numeric.values())

    @property
    def one_hot_width(self) -> int:
        """Inputs that come from categorical columns."""
        return sum(len(values) + 1 for values in self.categorical.values())

    @property
    def input_width(self) -> int:
        """All inputs of a row."""
        return self.numeric_width + self.one_hot_width


class SingleTaskConfig(TabularConfig):
    """A network per task, nothing shared: what every sharing is compared with."""

    family: Literal["single_task"]

    column: FlexibleWidths = Field(default=[64, 32])
    """Widths of the layers below each task's tower."""


class SharedBottomConfig(TabularConfig):
    """An MLP over tabular rows shared by all tasks, with a tower per task."""

    family: Literal["shared_bottom"]

    bottom: FlexibleWidths = Field(default=[64, 32])
    """Widths of the shared layers."""
