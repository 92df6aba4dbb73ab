"""What a problem's YAML file may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.data.config import FilesSource
from common.families.tabular_config import NumericColumn
from common.strict_model import StrictModel

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Values = Annotated[list[str], Field(min_length=1)]


class ProblemConfig(StrictModel):
    """A tabular multi-task problem: files, which columns are inputs and how, what is to be predicted.

    With ``auto`` or a list of columns, scales and values are found in the training file. Federated clients must agree
    on them without pooling rows: write them down, as ``python -m experiments inputs`` prints them.
    """

    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    """Task to its label column, classes and metrics, as in a server's `tasks:`, without `data` and `weight`. A task
    with `labels` is a classification, any other a regression; of two classes the metrics are auc and accuracy."""

    files: FilesSource
    """Training, validation and test files and how they are written, as in a task's `data`."""

    numeric: Literal["auto"] | Names | dict[str, NumericColumn] = "auto"
    """Numeric inputs: column to its scale; or columns whose scale is found; or `auto`: every column that no other key
    names, whose values are all numbers, more than `distinct` of them."""

    categorical: Literal["auto"] | Names | dict[str, Values] = "auto"
    """Categorical inputs: column to its values; or columns whose values are found; or `auto`: every column that no
    other key names and that `numeric` does not take."""

    distinct: int = Field(default=20, ge=1)
    """A column of at most so many different numbers is categorical under `auto`."""

    leave_out: tuple[str, ...] = ()
    """Columns that are no inputs, beside the labels and the weight, which never are."""

    missing: str = Field(default="?", min_length=1)
    """What stands for an unknown value, beside an empty field."""

    weight: str | None = None
    """Column of the rows' weights in the loss; none: all rows weigh the same."""

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        if self.files.train is None:
            raise ValueError("files.train is not given: name the training file")
        return self
