"""A task: data, head, loss and metrics under one name, as configuration.

`TaskSpec` is one entry of the server's `tasks:`; it travels to the clients, which need no file of their
own. `load_registry` reads the whole mapping, where an entry may build on a task that fedmtl ships
(`common/data/registry/*.yaml`)::

    tasks:
      sst2: {use: glue/sst2}                                    # as shipped: rows from the hub
      cola: {use: cola, data: {limits: {train: 2000}}}          # ... fewer of them
      qqp: {use: qqp, data: {train: qqp/train.tsv.gz, validation: qqp/dev.tsv.gz}}   # ... from files
      tickets:                                                  # a task of your own
        kind: classification
        text: subject
        labels: [question, complaint, praise]
        data: {train: tickets.csv, validation: 0.1}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, Literal, Self, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from common.data.config import SOURCES, DataSource, FilesSource, HubSource, SyntheticSource
from common.errors import ConfigError
from common.losses import LOSSES, LOSSES_OF, CosineLoss, CrossEntropyLoss, FocalLoss, Loss
from common.strict_model import StrictModel

Kind = Literal["classification", "regression"]
ClassificationMetric = Literal["accuracy", "f1", "matthews", "auc"]
RegressionMetric = Literal["pearson", "spearman", "mse", "mae"]
MetricName = Literal[ClassificationMetric, RegressionMetric]

ANYTHING_ELSE: Final = "*"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
#: Keys that say where rows come from: a `data` with one of them replaces the shipped one, others refine it.
ORIGIN_KEYS: Final = frozenset({"hub", "synthetic", "train"})

_DEFAULT_METRICS: Final[Mapping[Kind, tuple[MetricName, ...]]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
}
_METRICS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "classification": get_args(ClassificationMetric),
    "regression": get_args(RegressionMetric),
}


class ClassLabel(StrictModel):
    """One class and how the label column writes it."""

    name: str = Field(min_length=1)
    values: tuple[str, ...] = ()
    """Raw values that mean this class, `*` for every value that no other class names. None: its name, or its id."""


class TaskSpec(StrictModel):
    """What a task is; everything a client needs beside the model.

    In YAML `labels` is a list of class names in id order (the column then holds names or ids), or a
    mapping from class name to the raw value, or values, that mean it, also in id order.
    """

    name: str
    """The key in `tasks:`."""
    kind: Kind
    text: tuple[str, ...] = Field(default=(), max_length=2)
    """One or two text columns; none for tabular tasks, whose columns the model family names."""
    label: str = Field(default="label", min_length=1)
    """The label column."""
    labels: tuple[ClassLabel, ...] = ()
    """The classes in id order; none for regression."""
    weight: str | None = Field(default=None, min_length=1)
    """Column of the rows' weights, numbers of 0 or more. The loss is the weighted mean of the rows' losses, in training
    and in evaluation; metrics weigh all rows the same. Left out: all rows weigh 1."""
    label_range: tuple[float, float] | None = None
    """The lowest and highest score that a regression label may have; default any."""
    loss: Loss
    """A name or a mapping with `kind`. A classification has cross_entropy (the default) or focal, a regression mse
    (the default), huber or cosine."""
    metrics: tuple[MetricName, ...]
    """The first is the task's primary metric. Default accuracy, or pearson and spearman."""
    data: DataSource = FilesSource()
    """Where the rows come from; left out, each client names its own with `--data`."""

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, or 1."""
        return len(self.labels) or 1

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in id order; empty for regression."""
        return tuple(label.name for label in self.labels)

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """What the loss weighs each class's examples with, in id order; None where all weigh 1."""
        weights = self.loss.class_weights if isinstance(self.loss, CrossEntropyLoss | FocalLoss) else {}
        return tuple(weights.get(name, 1.0) for name in self.label_names) if weights else None

    @property
    def primary_metric(self) -> MetricName:
        """The metric a report shows first."""
        return self.metrics[0]

    @property
    def source(self) -> str:
        """Where the configuration says the rows come from, for reports; says "synthetic" when they are."""
        match self.data:
            case HubSource(hub=hub, config=config):
                return f"hub dataset {hub}" + (f" ({config})" if config else "")
            case SyntheticSource(synthetic=name):
                return f"synthetic {name} (generated, not real data)"
            case FilesSource(train=None):
                return "each client's own data"
            case FilesSource(train=train):
                return f"files {train} ..."

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_kind(cls, entry: Any) -> Any:  # noqa: ANN401  # pydantic hands over whatever it was given
        if not isinstance(entry, Mapping):
            return entry
        # Of an unknown kind its own check says what is wrong; the rest needs no complaint then.
        kind: Kind = "regression" if entry.get("kind") == "regression" else "classification"
        given = {"metrics": _DEFAULT_METRICS[kind], "loss": LOSSES_OF[kind][0], **entry}
        if isinstance(given["loss"], Mapping):
            given["loss"] = {"kind": LOSSES_OF[kind][0], **given["loss"]}
        return given

    @field_validator("text", "metrics", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:  # noqa: ANN401
        return (value,) if isinstance(value, str) else value

    @field_validator("labels", mode="before")
    @classmethod
    def _classes(cls, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, Mapping):
            return [
                {"name": _plain(name), "values": [_plain(v) for v in (raw if isinstance(raw, list | tuple) else [raw])]}
                for name, raw in value.items()
            ]
        if isinstance(value, list | tuple):
            return [item if isinstance(item, Mapping | ClassLabel) else {"name": _plain(item)} for item in value]
        return value

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("a task name holds letters, digits, '_' and '-' only, and starts with no '_' or '-'")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.loss.kind not in LOSSES_OF[self.kind]:
            raise ValueError(
                f"loss {self.loss.kind!r} does not fit kind {self.kind!r}: allowed are {list(LOSSES_OF[self.kind])}"
            )
        if not self.metrics:
            raise ValueError(f"`metrics` is empty: allowed are {list(_METRICS[self.kind])}")
        if wrong := [metric for metric in self.metrics if metric not in _METRICS[self.kind]]:
            raise ValueError(f"metrics {wrong} do not fit kind {self.kind!r}: allowed are {list(_METRICS[self.kind])}")
        if len({*self.text, self.label}) != len(self.text) + 1:
            raise ValueError(f"text {list(self.text)} and label {self.label!r} must be different columns")
        if self.weight in (*self.text, self.label):
            raise ValueError(f"weight {self.weight!r} can't be a text column or the label as well")
        if self.kind == "regression":
            if self.labels:
                raise ValueError("a regression task has no `labels`; `label_range` bounds its scores")
            if self.label_range is not None and not self.label_range[0] < self.label_range[1]:
                raise ValueError(f"label_range {list(self.label_range)} must be [lowest, highest]")
            if isinstance(self.loss, CosineLoss) and self.label_range is None:
                raise ValueError("loss 'cosine' needs `label_range`, which says what label a cosine of 0 and of 1 is")
            return self
        if self.label_range is not None:
            raise ValueError("`label_range` is for regression; a classification task has `labels`")
        if len(self.labels) < 2:
            raise ValueError("a classification task needs `labels`: at least two class names in id order")
        _check_distinct([label.name for label in self.labels], "class name")
        _check_distinct([v for label in self.labels for v in (label.values or (label.name,))], "raw label value")
        weighted = self.loss.class_weights if isinstance(self.loss, CrossEntropyLoss | FocalLoss) else {}
        if unknown := sorted(weighted.keys() - set(self.label_names)):
            raise ValueError(
                f"loss.class_weights names no class of the task: {unknown}; it has {list(self.label_names)}"
            )
        return self


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Numbers as text, for class names and raw values; the rest as it is, for pydantic to judge."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is a truth value: YAML reads yes, no, on, off, true, false so; put it in quotes")  # noqa: TRY004  # pydantic collects ValueErrors
    return str(value) if isinstance(value, int | float) else value


def _check_distinct(values: list[str], what: str) -> None:
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{what} given twice: {twice}")


def load_registry(entries: Mapping[str, Any], source: str) -> dict[str, TaskSpec]:
    """The tasks of a configuration, names filled in, shipped entries resolved, all of it validated.

    Args:
        entries: the mapping under `tasks:`, name to a full spec or to `{use: ...}` with overrides. A
            `data` override that says where rows come from (`hub`, `synthetic`, `train`) replaces the
            shipped `data`; any other (`limits`, `sharding`, `validation`, ...) is laid over it.
        source: the file, for messages.

    Raises:
        ConfigError: names file, key path, value and what is allowed.
    """
    if not entries:
        raise ConfigError(f"{source}: tasks: no task is given; write a mapping from task name to task")
    return {str(name): _load_entry(str(name), entry, source) for name, entry in entries.items()}


def _load_entry(name: str, entry: object, source: str) -> TaskSpec:
    where = f"{source}: tasks.{name}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: {entry!r} is not a task: write a mapping, such as {{use: glue/sst2}}")
    if "name" in entry:
        raise ConfigError(f"{where}.name: {entry['name']!r}: the key in `tasks:` is the name; leave `name` out")
    merged = _resolve_use(entry, where) if "use" in entry else dict(entry)
    try:
        return TaskSpec.model_validate({**merged, "name": name})
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(where, problem) for problem in error.errors())) from error


def _resolve_use(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    shipped = shipped_tasks()
    wanted = str(entry["use"])
    found = [key for key in shipped if wanted in (key, key.split("/")[1])]
    if len(found) != 1:
        wrong = f"is the name of several: write {' or '.join(found)}" if found else "is not a shipped task"
        raise ConfigError(f"{where}.use: {wanted!r} {wrong}; allowed are {', '.join(shipped)}")
    base = shipped[found[0]]
    overrides = {key: value for key, value in entry.items() if key != "use"}
    data = overrides.get("data")
    if isinstance(data, Mapping) and not ORIGIN_KEYS & data.keys():
        overrides["data"] = _laid_over(base.get("data", {}), data)
    return {**base, **overrides}


def _laid_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mappings merged key by key."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = _laid_over(below, value) if both else value  # type: ignore[arg-type]  # both are mappings
    return result


def shipped_tasks() -> dict[str, dict[str, Any]]:
    """The entries that `use:` may name, ``file/entry`` to the entry as plain data."""
    folder = resources.files("common.data") / "registry"
    files = sorted((path for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda path: path.name)
    return {
        f"{path.name.removesuffix('.yaml')}/{name}": entry
        for path in files
        for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items()
    }


def _problem(where: str, problem: Mapping[str, Any]) -> str:
    """One line for one finding of pydantic: path, value, and what is allowed."""
    location: tuple[int | str, ...] = problem["loc"]
    path = "".join(f".{part}" for part in location if not (isinstance(part, str) and part.startswith("<")))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}{path}: unknown key; allowed here are {', '.join(_allowed_keys(location[:-1]))}"
    if problem["type"] == "missing":
        return f"{where}{path}: missing"
    found = "" if isinstance(problem["input"], Mapping) else f"{problem['input']!r}: "
    return f"{where}{path}: {found}{message}"


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = TaskSpec
    for part in location:
        if part in SOURCES or part in LOSSES:
            model = {**SOURCES, **LOSSES}[str(part)]
        elif part == "labels":
            model = ClassLabel
        elif isinstance(part, str) and part not in ("data", "loss"):
            model = model.model_fields[part].annotation
    keys = [key for key in model.model_fields if model is not TaskSpec or key != "name"]
    return [*keys, "use"] if model is TaskSpec else keys
