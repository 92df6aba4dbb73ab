"""A problem with its files found: what a model is built and trained from.

A file of one's own looks like the shipped ones::

    tasks:
      churn: {label: cancelled, labels: {stays: "0", leaves: "1"}}
      spend: {label: spend_next_year}                    # a regression
    files: {train: customers.csv, validation: 0.1, test: customers-2024.csv}
    numeric: auto                                        # or [age, income], or {age: {mean: 40, std: 12}, ...}
    categorical: auto                                    # or [region], or {region: [north, south], ...}
    leave_out: [customer_id]
    missing: "n/a"
    weight: survey_weight
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from common.config_file import read_yaml, validate
from common.data.files import find_file, read_file
from common.data.tables import Table, require_columns
from common.errors import ConfigError, DataError
from common.tasks import TaskSpec, load_registry
from experiments.problems.config import ProblemConfig
from experiments.problems.inputs import Choice, found_inputs, sections

#: Names the folder of the data sets where `--data` does not.
DATA_VARIABLE: Final = "FEDMTL_DATA"
#: A key that only files have: the problem whose keys a file's own are laid over.
BASE: Final = "base"
_OF_ALL: Final = frozenset({"data", "weight", "use", "text"})


@dataclass(frozen=True)
class Problem:
    """Tasks over the same rows.

    Attributes:
        name: of a shipped problem, or the stem of the YAML file's name.
        tasks: task to its specification, whose `data` names files in `folder`.
        inputs: the keys ``numeric``, ``categorical`` and ``missing`` of a model section, as plain data.
        source: where the problem is described and its rows lie, for reports.
        folder: what `load_examples` takes as `data`.
    """

    name: str
    tasks: dict[str, TaskSpec]
    inputs: dict[str, Any]
    source: str
    folder: Path


def data_folder() -> Path:
    """Where data sets lie when no folder is named: in what FEDMTL_DATA names, or in ``data``."""
    return Path(os.environ.get(DATA_VARIABLE) or "data")


def shipped_problems() -> dict[str, Path]:
    """The names that `load_problem` knows, and their files."""
    folder = Path(str(resources.files("experiments.problems")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def load_problem(name_or_yaml: str, data: Path | None) -> Problem:
    """Read a problem and find its files.

    Args:
        name_or_yaml: a shipped problem (`shipped_problems`) or a YAML file.
        data: folder of the files; left out: for a shipped problem what FEDMTL_DATA names or else ``data``, for a YAML
            file its own folder. A file may be packed (``.gz``) or not, and may lie in the folder itself.

    Raises:
        ConfigError: there is no such problem, or its file is wrong.
        DataError: a file is not there, or its columns do not fit.
    """
    shipped = shipped_problems()
    path = shipped.get(name_or_yaml, Path(name_or_yaml))
    config = _read(path, name_or_yaml)
    if data is None:
        data = data_folder() if name_or_yaml in shipped else path.parent
    found = _found(config, data, path.stem if name_or_yaml in shipped else None)
    files = config.files.model_copy(update=found)
    train = data / found["train"]  # ProblemConfig sees to it that there is one
    if not files.format.missing:
        files = files.model_copy(update={"format": files.format.model_copy(update={"missing": (config.missing,)})})
    tasks = _tasks(config, files.model_dump(exclude_defaults=True), str(path))
    inputs = _inputs(config, tasks, train, str(path))
    described = f"shipped problem {path.stem}" if name_or_yaml in shipped else str(path)
    return Problem(path.stem, tasks, inputs, f"{described}, files {train} ...", data)


def _read(path: Path, given: str) -> ProblemConfig:
    """The file, laid over the problem that it builds on."""
    shipped = shipped_problems()
    if not path.is_file():
        raise ConfigError(
            f"problem {given!r}: neither a shipped problem ({', '.join(shipped)}) nor a YAML file ({path.absolute()})"
        )
    keys = read_yaml(path)
    if (base := keys.pop(BASE, None)) is not None:
        if base not in shipped or shipped[base] == path:
            raise ConfigError(f"{path}: {BASE}: {base!r} is no shipped problem to build on: {', '.join(shipped)}")
        keys = {**read_yaml(shipped[base]), **keys}
    return validate(ProblemConfig, keys, str(path))


def _found(config: ProblemConfig, folder: Path, shipped: str | None) -> dict[str, str]:
    """Key of `files` to the path, relative to `folder`, at which the file is there."""
    paths = {
        key: value for key in ("train", "validation", "test") if isinstance(value := getattr(config.files, key), str)
    }
    found: dict[str, str] = {}
    for key, path in paths.items():
        places = [place for place in (Path(path), Path(Path(path).name)) if find_file(folder / place)]
        if not places:
            hint = f"; `python -m experiments data {shipped} --to {folder}` fetches it" if shipped else ""
            raise DataError(
                f"files.{key}: there is no {folder.absolute() / path} (nor that file with or without .gz, nor in the "
                f"folder itself){hint}. --data names the folder"
            )
        found[key] = str(places[0])
    return found


def _tasks(config: ProblemConfig, files: Mapping[str, Any], source: str) -> dict[str, TaskSpec]:
    entries: dict[str, Any] = {}
    for name, entry in config.tasks.items():
        if given := sorted(_OF_ALL & entry.keys()):
            raise ConfigError(f"{source}: tasks.{name}: leave out {given}: `files` and `weight` say it for all tasks")
        classes = len(entry.get("labels", ()))
        defaults: dict[str, Any] = {"kind": "classification" if classes else "regression", "data": files}
        if classes == 2:
            defaults["metrics"] = ["auc", "accuracy"]
        if config.weight is not None:
            defaults["weight"] = config.weight
        entries[name] = {**defaults, **entry}
    return load_registry(entries, source)


def _inputs(config: ProblemConfig, tasks: Mapping[str, TaskSpec], train: Path, source: str) -> dict[str, Any]:
    """The declared inputs, and those that the training file has to tell."""
    never = {task.label: f"the label of task {name!r}" for name, task in tasks.items()}
    never |= dict.fromkeys(config.leave_out, "under leave_out")
    if config.weight is not None:
        never[config.weight] = "the weight"
    for key, columns in (("numeric", config.numeric), ("categorical", config.categorical)):
        for name in () if columns == "auto" else columns:
            if name in never:
                raise ConfigError(f"{source}: {key}: column {name!r} can't be an input: it is {never[name]} as well")
    declared: dict[str, dict[str, Any]] = {
        "numeric": {name: column.model_dump(exclude_defaults=True) for name, column in config.numeric.items()}
        if isinstance(config.numeric, dict)
        else {},
        "categorical": dict(config.categorical) if isinstance(config.categorical, dict) else {},
    }
    if not (isinstance(config.numeric, dict) and isinstance(config.categorical, dict)):
        table = read_file(train, config.files.format, None)
        found = found_inputs(table, _choice(config, frozenset(never), declared, table))
        declared = {key: {**declared[key], **found[key]} for key in declared}
    return sections({**declared, "missing": config.missing})


def _choice(
    config: ProblemConfig, never: frozenset[str], declared: Mapping[str, Mapping[str, Any]], table: Table
) -> Choice:
    require_columns([*never, *declared["numeric"], *declared["categorical"]], list(table.columns), table.source)
    automatic = tuple(key for key in ("numeric", "categorical") if getattr(config, key) == "auto")
    return Choice(
        numeric=config.numeric if isinstance(config.numeric, tuple) else (),
        categorical=config.categorical if isinstance(config.categorical, tuple) else (),
        rest={0: "leave", 1: "".join(automatic), 2: "judge"}[len(automatic)],
        left_out=never | declared["numeric"].keys() | declared["categorical"].keys(),
        distinct=config.distinct,
        missing=config.missing,
    )
