"""YAML configuration: read, overridden by ``--set key.path=value``, validated, and refused in plain words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from common.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (plain YAML keeps the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # ``<<``: what it brings in gives way to keys of this mapping
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from error
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, this is {type(data).__name__}")
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `data` with each ``key.path=value`` set; values are read as YAML scalars or lists.

    Raises:
        ConfigError: an override has no ``=``, or its path runs through something that is no mapping.
    """
    result = _copied(data)
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {override!r}: expected key.path=value, such as run.rounds=5")
        keys = path.split(".")
        target = result
        for depth, key in enumerate(keys[:-1]):
            inner = target.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {override!r}: {'.'.join(keys[: depth + 1])} is no section, but {inner!r}")
            target = inner
        try:
            target[keys[-1]] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value") from error
    return result


def validate(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """`data` as a `model`.

    Raises:
        ConfigError: one line per problem: source, key path, what is wrong, the value found.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        raise ConfigError("\n".join(describe_problem(source, problem, model) for problem in problems)) from error


def describe_problem(source: str, problem: Mapping[str, Any], model: type[BaseModel] | None = None) -> str:
    """One pydantic problem as ``file: key.path: what is wrong and allowed (found: value)``.

    With `model`, what was validated, an unknown key is answered with the keys that its section has.
    """
    path = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        keys = _keys_beside(problem["loc"], model)
        known = f"; the keys here are {', '.join(keys)}" if keys else ""
        return f"{source}: {path}: unknown key{known}; see docs/configuration.md"
    if problem["type"] == "missing":
        return f"{source}: {path}: this key is required"
    found = repr(problem["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    return f"{source}: {path}: {problem['msg'].removeprefix('Value error, ')} (found: {found})"


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel] | None) -> list[str]:
    """The keys of the section in which a key lies; none where it is no plain section of sections."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part)) if model is not None else None
        inner = field.annotation if field is not None else None
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    return sorted(model.model_fields) if model is not None else []


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in data.items()}
