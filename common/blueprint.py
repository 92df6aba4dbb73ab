"""What a model family consists of: named parameters, and for each the tasks that use and train it.

A blueprint says nothing about copies or sharing; that is the sharing plan's matter (`common.plan`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from common.errors import PlanError

Shape = tuple[int, ...]
Kind = Literal["parameter", "buffer", "control"]

#: Characters that a task name may not hold: slot ids are ``parameter@task+task``.
RESERVED = frozenset("@+/\\ \t\n")


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One named tensor of a model family.

    Attributes:
        name: unique in the blueprint, the module path of the tensor (``encoder.embeddings.weight``).
        shape: its dimensions.
        dtype: its element type by torch's name without the prefix (``float32``).
        used_by: the tasks whose forward pass reads it.
        trained_by: the tasks whose loss may change it, a subset of `used_by`; empty means frozen.
        group: where it sits in the model (``embeddings``, ``layer.0``, ``pooler``, ``head``): the
            unit that layer-wise learning rates, unfreezing schedules and layer splitting speak of.
        kind: a ``buffer`` is state that no optimiser touches (running means); it is averaged like
            a parameter. A ``control`` is no part of the model: it is the control variate of a
            parameter (`common.control_variates`).
    """

    name: str
    shape: Shape
    dtype: str
    used_by: frozenset[str]
    trained_by: frozenset[str]
    group: str
    kind: Kind = "parameter"

    def __post_init__(self) -> None:
        if not self.used_by:
            raise PlanError(f"parameter {self.name!r} is used by no task")
        if not self.trained_by <= self.used_by:
            raise PlanError(
                f"parameter {self.name!r} is trained by {sorted(self.trained_by - self.used_by)}, which do not use it"
            )

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Blueprint:
    """The parameters of one model family for given tasks, in the order in which the model holds them.

    Attributes:
        family: the family's name.
        tasks: every task, in configuration order.
        parameters: unique names; a tied tensor appears once, under one name.
    """

    family: str
    tasks: tuple[str, ...]
    parameters: tuple[ParameterSpec, ...]
    by_name: Mapping[str, ParameterSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for task in self.tasks:
            if not task or RESERVED & set(task):
                raise PlanError(f"task name {task!r}: not allowed are the empty name and any of {sorted(RESERVED)}")
        if len(set(self.tasks)) != len(self.tasks):
            raise PlanError(f"blueprint of {self.family!r} lists a task twice: {list(self.tasks)}")
        by_name = {parameter.name: parameter for parameter in self.parameters}
        if len(by_name) != len(self.parameters):
            raise PlanError(f"blueprint of {self.family!r} lists a parameter twice")
        known = frozenset(self.tasks)
        for parameter in self.parameters:
            if not parameter.used_by <= known:
                unknown = sorted(parameter.used_by - known)
                raise PlanError(f"parameter {parameter.name!r} is used by unknown tasks {unknown}")
        object.__setattr__(self, "by_name", by_name)

    def used_by(self, task: str) -> tuple[ParameterSpec, ...]:
        """The parameters that the forward pass of `task` reads, in blueprint order."""
        return tuple(parameter for parameter in self.parameters if task in parameter.used_by)
