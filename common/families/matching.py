"""Families of the same size, so that a comparison between them is one of structure.

A section marks the widths that may change (`common.families.tabular_config.Flexible`): of the layers that a family
shares, or that each task has of its own below its tower. All of them are multiplied by one factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel

from common.errors import ConfigError
from common.families.tabular_config import Flexible, TabularConfig

if TYPE_CHECKING:
    from common.families.config import AnyTabularConfig
    from common.tasks import TaskSpec

Section = TypeVar("Section", bound=TabularConfig)
Model = TypeVar("Model", bound=BaseModel)


def count(config: TabularConfig, tasks: Mapping[str, TaskSpec]) -> int:
    """Parameters of the model of all tasks, towers included; buffers are not counted.

    Args:
        config: the `model:` section.
        tasks: every task by name.

    Raises:
        ConfigError: the section does not fit the tasks.
    """
    from common.families.tabular_family import TabularFamily

    blueprint = TabularFamily.from_config(cast("AnyTabularConfig", config), tasks).blueprint()
    return sum(spec.numel for spec in blueprint.parameters if spec.kind == "parameter")


def matched(config: Section, tasks: Mapping[str, TaskSpec], parameters: int) -> Section:
    """The section with its flexible widths multiplied by one factor, so that `count` is as near as possible.

    Widths are rounded to whole units, 1 at least, so several layers keep their proportions only roughly. Of two
    sections that are equally near, the smaller is taken.

    Args:
        config: the `model:` section to change.
        tasks: every task by name.
        parameters: how many the model of all tasks should have.

    Raises:
        ConfigError: no width is flexible, or the narrowest layers already give more.
    """
    if not (widths := flexible_widths(config)):
        raise ConfigError(f"model: {type(config).__name__} has no widths that could be changed to match a size")

    known: dict[tuple[int, ...], int] = {}  # towards the end, factors often give the same widths

    def size(factor: float) -> int:
        section = scaled(config, factor)
        found = tuple(flexible_widths(section))
        if found not in known:
            known[found] = count(section, tasks)
        return known[found]

    low, high = 1 / (2 * max(widths)), 1.0
    if (least := size(low)) > parameters:
        raise ConfigError(
            f"model: no widths give {parameters} parameters; with layers of one unit there are {least} already. Make "
            "towers or the number of experts smaller, or match a larger size"
        )
    while size(high) < parameters:
        low, high = high, 2 * high
    # Beyond this no width changes any more between the two ends.
    while (high - low) * max(widths) > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) < parameters else (low, middle)
    return scaled(config, min((low, high), key=lambda factor: abs(size(factor) - parameters)))


def scaled(config: Model, factor: float) -> Model:
    """The section with every flexible width multiplied by `factor` and rounded, 1 at least."""
    changed: dict[str, Any] = {}
    for name, value, flexible in _fields(config):
        if flexible:
            changed[name] = [max(1, round(width * factor)) for width in value]
        elif isinstance(value, BaseModel):
            changed[name] = scaled(value, factor)
        elif isinstance(value, list):
            changed[name] = [scaled(part, factor) if isinstance(part, BaseModel) else part for part in value]
    return config.model_copy(update=changed)


def flexible_widths(config: BaseModel) -> list[int]:
    """All flexible widths of a section, in the order in which it has them."""
    found: list[int] = []
    for _, value, flexible in _fields(config):
        if flexible:
            found += value
        else:
            parts = value if isinstance(value, list) else [value]
            found += [width for part in parts if isinstance(part, BaseModel) for width in flexible_widths(part)]
    return found


def _fields(config: BaseModel) -> Iterator[tuple[str, Any, bool]]:
    """Name, value and whether it is flexible widths, of every field."""
    for name, field in type(config).model_fields.items():
        yield name, getattr(config, name), any(isinstance(mark, Flexible) for mark in field.metadata)
