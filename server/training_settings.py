"""How each client trains: the settings of the run, and what overrides change for some clients or tasks.

Pure: nothing is read, sent or kept here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any, Final

from pydantic import Field, ValidationError, model_validator

from common.blueprint import Blueprint, ParameterSpec
from common.config_file import describe_problem
from common.errors import ConfigError
from common.parameter_rates import can_decay
from common.selectors import select
from common.strict_model import StrictModel
from common.training import EXCLUSIVE, TrainSettings

_WILD: Final = frozenset("*?[")


class TrainingOverride(StrictModel):
    """Other settings for some clients. Give `clients`, `tasks` or both."""

    clients: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Client ids, or patterns of them with `*`, `?` and `[...]`: for clients that one of them fits."""
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1)
    """For clients all of whose tasks are among these."""
    set: dict[str, Any] = Field(min_length=1)
    """Keys of `training` and their values, such as `{learning_rate: 5.0e-5, local_steps: 20}`. `local_steps` takes the
    place of `local_epochs`, `warmup_steps` that of `warmup`, and the other way round."""

    @model_validator(mode="after")
    def _for_somebody(self) -> TrainingOverride:
        if self.clients is None and self.tasks is None:
            raise ValueError("give clients, tasks or both: settings for everybody belong into training")
        return self

    def applies_to(self, client_id: str, tasks: Collection[str]) -> bool:
        """Whether it is for this client with these tasks."""
        return (self.clients is None or any(fnmatchcase(client_id, pattern) for pattern in self.clients)) and (
            self.tasks is None or set(tasks) <= set(self.tasks)
        )


def changes_for(overrides: Iterable[TrainingOverride], client_id: str, tasks: Collection[str]) -> dict[str, Any]:
    """What the overrides set for one client; of a key that several set, the last of them counts.

    Returns:
        key of `training` to value as configured; empty for a client that trains as the run says.
    """
    changes: dict[str, Any] = {}
    for override in overrides:
        if override.applies_to(client_id, tasks):
            changes = _over(changes, override.set)
    return changes


def changed(base: TrainSettings, changes: Mapping[str, Any]) -> TrainSettings:
    """The settings with some keys set anew.

    Raises:
        ValidationError: of unknown keys, values out of bounds, or a contradiction. `check_overrides` rules it out for
            all clients when a configuration is loaded.
    """
    return TrainSettings.model_validate(_over(base.model_dump(), changes)) if changes else base


def check_overrides(
    base: TrainSettings, overrides: Sequence[TrainingOverride], tasks: Collection[str], source: str
) -> None:
    """Refuse overrides that name unknown tasks, or that give no valid settings, alone or two of them together.

    What settings say about each other they say in pairs, so no more than two overrides need to be looked at together.

    Args:
        base: the run's settings.
        overrides: in order.
        tasks: the run's tasks.
        source: the configuration's file, for the message.

    Raises:
        ConfigError: a line per problem, each with its key path.
    """
    problems: list[str] = []
    for number, override in enumerate(overrides):
        if unknown := sorted(set(override.tasks or ()) - set(tasks)):
            where = f"training_overrides.{number}.tasks"
            problems.append(f"{source}: {where}: no such task {unknown}; configured are {sorted(tasks)}")
        problems += _problems(base, override.set, f"training_overrides.{number}.set", source)
    if not problems:
        for (one, first), (other, second) in combinations(enumerate(overrides), 2):
            if _may_meet(first, second):
                where = f"training_overrides.{other}.set, together with training_overrides.{one}.set"
                problems += _problems(base, _over(first.set, second.set), where, source)
    if problems:
        raise ConfigError("\n".join(problems))


def check_selectors(
    base: TrainSettings, overrides: Sequence[TrainingOverride], blueprint: Blueprint, source: str
) -> None:
    """Refuse selectors and task names of `training` and its overrides that mean nothing, and tasks without training.

    Args:
        base: the run's settings.
        overrides: of which `check_overrides` found nothing to say.
        blueprint: the model.
        source: the configuration's file, for the message.

    Raises:
        ConfigError: names the key path and what the model has.
    """
    _check_settings(base, "training", blueprint, blueprint.tasks, source)
    for number, override in enumerate(overrides):
        if override.set.keys() & {"groups", "unfreeze", "loss_weights"}:
            settings, tasks = changed(base, override.set), override.tasks or blueprint.tasks
            _check_settings(settings, f"training_overrides.{number}.set", blueprint, tasks, source)


def _check_settings(
    settings: TrainSettings, where: str, blueprint: Blueprint, tasks: Iterable[str], source: str
) -> None:
    def chosen(key: str, selectors: Iterable[str]) -> list[ParameterSpec]:
        try:
            return [blueprint.by_name[name] for name in select(selectors, blueprint.parameters)]
        except ConfigError as error:
            raise ConfigError(f"{source}: {where}.{key}: {error}") from error

    if unknown := sorted(set(settings.loss_weights) - set(blueprint.tasks)):
        raise ConfigError(
            f"{source}: {where}.loss_weights: no such task {unknown}; configured are {sorted(blueprint.tasks)}"
        )
    for number, group in enumerate(settings.groups):
        specs = chosen(f"groups.{number}.match", group.match)
        if group.weight_decay is not None and not any(map(can_decay, specs)):
            raise ConfigError(
                f"{source}: {where}.groups.{number}.weight_decay: {', '.join(group.match)} means biases and weights of "
                "norms only, which never decay; leave it out"
            )
    opened = [chosen(f"unfreeze.{n}.open", opening.open) for n, opening in enumerate(settings.unfreeze)]
    if opened:
        trained: frozenset[str] = frozenset().union(*(spec.trained_by for spec in opened[0]))
        if idle := sorted(set(tasks) - trained):
            raise ConfigError(f"{source}: {where}.unfreeze.0.open: opens nothing that the tasks {idle} may train")


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping laid over another; a setting makes the other of an exclusive pair give way."""
    gone = {
        other
        for pair in EXCLUSIVE
        for key, other in (pair, pair[::-1])
        if above.get(key) is not None and other not in above
    }
    return {**{key: value for key, value in below.items() if key not in gone}, **above}


def _problems(base: TrainSettings, changes: Mapping[str, Any], where: str, source: str) -> list[str]:
    try:
        changed(base, changes)
    except ValidationError as error:
        return [_in_words(problem, changes, where, source) for problem in error.errors()]
    return []


def _in_words(problem: Mapping[str, Any], changes: Mapping[str, Any], where: str, source: str) -> str:
    if not problem["loc"]:  # of several keys
        return describe_problem(source, {**problem, "loc": (where,), "input": dict(changes)})
    told = describe_problem(source, problem, TrainSettings)
    return f"{source}: {where}.{told.removeprefix(f'{source}: ')}"


def _may_meet(one: TrainingOverride, other: TrainingOverride) -> bool:
    """Whether a client can be there for which both are; said of two patterns with wildcards in any case."""
    if one.tasks is not None and other.tasks is not None and not set(one.tasks) & set(other.tasks):
        return False
    if one.clients is None or other.clients is None:
        return True
    return any(
        fnmatchcase(mine, theirs) or fnmatchcase(theirs, mine) or bool(_WILD & set(mine) and _WILD & set(theirs))
        for mine in one.clients
        for theirs in other.clients
    )
