"""Plans, slices and slots as they are written in a file or a frame: what is read is held against these models.

Unknown fields are ignored, so that a later version may add some; nothing is converted or guessed.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.blueprint import Kind

FORMAT: Final = 1
Residence = Literal["server", "client"]
Name = Annotated[str, Field(min_length=1)]


class _Written(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class SlotData(_Written):
    """One slot, with all that its parameter's blueprint says."""

    parameter: Name
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=64)]
    dtype: Name
    group: str
    kind: Kind
    used_by: list[Name]
    may_train: list[Name]
    tasks: list[Name]
    residence: Residence
    frozen: bool


class SliceData(_Written):
    """A client's slots; each is a `SlotData`."""

    tasks: list[Name]
    slots: list[dict[str, Any]]


class PlanData(_Written):
    """A whole plan; each slot is a `SlotData`."""

    format: Literal[1]
    family: str
    tasks: list[Name]
    slots: list[dict[str, Any]]
