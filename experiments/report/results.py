"""Reads the result files that the experiments' commands write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import DataError

Load = Annotated[list[float], Field(min_length=1)]


class Record(BaseModel):
    """Part of a result file. Keys that are not read here may be there: other programs read the files too."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class GateState(Record):
    """What one gate did with one task's rows."""

    experts: list[str] = Field(default_factory=list)
    """Names of the experts in the order of `load`; empty: they have none."""

    load: Load
    """Mean weight of each expert over the rows; sums to 1."""

    entropy: float
    """Mean entropy of the weights per row, in nats."""


class GateDistance(Record):
    """How far two tasks' gates are apart."""

    tasks: tuple[str, str]
    gates: tuple[str, str]
    distance: float
    """Jensen-Shannon, to base 2."""


class Point(Record):
    """A model's state after an epoch or a round."""

    epoch: int | None = None
    """Epochs trained, of a central run."""

    round: int | None = None
    """Rounds done, of a federated run."""

    tasks: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """Task to metric to value."""

    gates: dict[str, dict[str, GateState]] = Field(default_factory=dict)
    """Task to gate to what it did."""

    gate_distances: list[GateDistance] = Field(default_factory=list)
    """Of every two tasks' gates that weigh the same experts."""

    @property
    def at(self) -> int:
        """The epoch, or else the round."""
        return (self.epoch if self.epoch is not None else self.round) or 0


class Preference(Record):
    """Inputs that an expert gets more of than the average expert."""

    column: str
    """The input column."""

    value: str
    """Its value, or a range of values."""

    lift: float
    """The expert's mean weight over these rows by that over all."""

    share: float
    """Which part of all rows have the value."""


class ExpertUse(Record):
    """What one expert of a gate is used for."""

    expert: str
    """Its name."""

    load: float
    """Its mean weight over the rows."""

    top: list[Preference] = Field(default_factory=list)
    """The inputs it gets most above average, the most first."""


class GateExperts(Record):
    """The experts that a gate weighs."""

    experts: list[ExpertUse]
    """In the gate's order."""


class TrainResult(Record):
    """One training run."""

    kind: Literal["train"]
    model: str
    """The family, or ``lightgbm``."""

    dataset: str
    """The data set with its task pair."""

    seed: int
    epochs: int
    """Epochs each client's rows were trained on; of trees their number."""

    parameters: int | None = None
    seconds: float
    examples_per_second: float | None = None
    federated: int | None = None
    """Number of clients; None: trained centrally."""

    partition: str | None = None
    """How rows were dealt to clients."""

    settings: dict[str, Any] = Field(default_factory=dict)
    test: dict[str, dict[str, float | None]]
    """Task to metric to value on the test rows."""

    history: list[Point] = Field(default_factory=list)
    specialisation: dict[str, dict[str, GateExperts]] = Field(default_factory=dict)
    """Task to gate to what its experts are used for."""


class Cell(Record):
    """One training of the correlation sweep."""

    family: str
    correlation: float
    """Cosine of the tasks' weight vectors."""

    label_correlation: float
    """Pearson correlation of the tasks' labels as drawn."""

    seed: int
    learning_rate: float
    test_loss: float | None
    train_loss: float | None
    parameters: int | None = None
    gate_distance: float | None = None
    """Jensen-Shannon distance between the tasks' gates."""


class Relation(Record):
    """A statement about the sweep, tested on pairs of the same seeds."""

    relation: str = Field(validation_alias=AliasChoices("relation", "text"))
    estimate: float
    low: float
    high: float
    holds: bool | str | None
    """Whether it does: a truth value, or a word such as yes, no or unclear."""

    seeds: int | None = None


class CorrelationResult(Record):
    """A sweep over the correlation of two tasks."""

    kind: Literal["correlation"]
    settings: dict[str, Any] = Field(default_factory=dict)
    cells: list[Cell]
    relations: list[Relation] = Field(default_factory=list)


class DynamicsRun(Record):
    """A training under one weighting of the tasks' losses."""

    weights: dict[str, float]
    history: list[Point]
    test: dict[str, dict[str, float | None]]


class DynamicsResult(Record):
    """The same training under several weightings."""

    kind: Literal["dynamics"]
    model: str
    dataset: str
    seed: int
    runs: list[DynamicsRun]


Result = Annotated[TrainResult | CorrelationResult | DynamicsResult, Field(discriminator="kind")]
ADAPTER: Final[TypeAdapter[TrainResult | CorrelationResult | DynamicsResult]] = TypeAdapter(Result)
KINDS: Final = ("train", "correlation", "dynamics")


@dataclass(frozen=True)
class Results:
    """All that was read, each with the path of its file below the folders asked for; sorted by path.

    Attributes:
        train, correlation, dynamics: by kind.
        other: JSON files that hold something else.
    """

    train: tuple[tuple[str, TrainResult], ...] = ()
    correlation: tuple[tuple[str, CorrelationResult], ...] = ()
    dynamics: tuple[tuple[str, DynamicsResult], ...] = ()
    other: tuple[str, ...] = ()


def read_results(folders: Sequence[Path]) -> Results:
    """Read every ``*.json`` below the folders, each file once.

    Raises:
        DataError: a folder is not there, or a file of one of our kinds does not hold what it should.
    """
    found: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no folder of results; name those that were given as --out")
        name = folder.resolve().name
        for path in folder.rglob("*.json"):
            found.setdefault(path.resolve(), f"{name}/{path.relative_to(folder).as_posix()}")
    train, correlation, dynamics, other = [], [], [], []
    for path, name in sorted(found.items(), key=lambda pair: (pair[1], pair[0])):
        match _read(path):
            case TrainResult() as result:
                train.append((name, result))
            case CorrelationResult() as result:
                correlation.append((name, result))
            case DynamicsResult() as result:
                dynamics.append((name, result))
            case None:
                other.append(name)
    return Results(tuple(train), tuple(correlation), tuple(dynamics), tuple(other))


def _read(path: Path) -> TrainResult | CorrelationResult | DynamicsResult | None:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("kind") not in KINDS:
        return None
    try:
        return ADAPTER.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: not a result of kind {document['kind']!r}: {where}: {first['msg']}") from error
