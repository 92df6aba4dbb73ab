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
        raise ConfigError("\n".join(describe_problem(source, problem) for problem in error.errors())) from error


def describe_problem(source: str, problem: Mapping[str, Any]) -> str:
    """One pydantic problem as ``file: key.path: what is wrong and allowed (found: value)``."""
    path = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        return f"{source}: {path}: unknown key; see docs/configuration.md for the keys that exist here"
    if problem["type"] == "missing":
        return f"{source}: {path}: this key is required"
    found = repr(problem["input"])
    return f"{source}: {path}: {problem['msg']} (found: {found if len(found) <= 80 else found[:77] + '...'})"


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in data.items()}
