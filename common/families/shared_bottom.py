"""The `shared_bottom` family: an MLP over tabular rows shared by all tasks, a tower per task.

Parameters are named ``encoder.layers.<n>.*`` (the bottom) and ``heads.<task>.*`` (the towers). How a
row becomes numbers is declared in the configuration, so all clients agree without pooling data:

* a numeric column gives two inputs: the scaled value (0 where missing) and a missing indicator;
* a categorical column gives one input per declared value and a missing indicator; a value that was
  not declared gives zeros in all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from common.blueprint import Blueprint
from common.errors import ConfigError, DataError, ProtocolError
from common.families.base import ModelSummary, MultiTaskModel
from common.families.config import NumericColumn, SharedBottomConfig
from common.families.encoded_rows import EncodedRows
from common.families.heads import check_task_names
from common.families.module_blueprint import blueprint_of
from common.losses import CosineLoss
from common.seeds import derive_seed
from common.strict_model import StrictModel

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.tasks import TaskSpec

FAMILY: Final = "shared_bottom"


class TowerSpec(StrictModel):
    """What a tower puts out."""

    outputs: int
    """Number of classes, or 1."""
    regression: bool
    """Whether the output is a score; the last dimension is then dropped."""


class SharedBottomDescription(StrictModel):
    """What a client is told; a field it does not know could change the model, so that is refused."""

    format: Literal[1] = 1
    family: Literal["shared_bottom"] = FAMILY
    config: SharedBottomConfig
    towers: dict[str, TowerSpec]

    @property
    def numeric_width(self) -> int:
        """Inputs that come from numeric columns."""
        return 2 * len(self.config.numeric)

    @property
    def one_hot_width(self) -> int:
        """Inputs that come from categorical columns."""
        return sum(len(values) + 1 for values in self.config.categorical.values())


class HiddenLayers(nn.Module):
    """Linear-ReLU-Dropout, once per width: (B, input_size) to (B, widths[-1])."""

    def __init__(self, input_size: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        sizes = [input_size, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Hidden activations."""
        for layer in self.layers:
            values = self.dropout(torch.relu(layer(values)))
        return values


class Tower(HiddenLayers):
    """Hidden layers and an output layer: (B, input_size) to (B, outputs)."""

    def __init__(self, input_size: int, widths: Sequence[int], dropout: float, outputs: int) -> None:
        super().__init__(input_size, widths, dropout)
        self.output = nn.Linear([input_size, *widths][-1], outputs)

    def forward(self, values: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.output(super().forward(values))
        return logits


class SharedBottomModel(MultiTaskModel):
    """Bottom and towers."""

    def __init__(self, description: SharedBottomDescription, tasks: Sequence[str]) -> None:
        super().__init__()
        config = description.config
        width = description.numeric_width + description.one_hot_width
        self.encoder = HiddenLayers(width, config.bottom, config.dropout)
        towers = {task: description.towers[task] for task in tasks}
        self.heads = nn.ModuleDict(
            {
                task: Tower(config.bottom[-1], config.tower, config.dropout, tower.outputs)
                for task, tower in towers.items()
            }
        )
        self._regressions = {task for task, tower in towers.items() if tower.regression}

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) or scores (B,); `batch` holds features (B, F)."""
        logits: Tensor = self.heads[task](self.encoder(batch["features"]))
        return logits.squeeze(-1) if task in self._regressions else logits


class SharedBottomFamily:
    """See `common.families.base.Family`."""

    name = FAMILY
    token_rows: tuple[str, ...] = ()

    def __init__(self, description: SharedBottomDescription, tasks: Mapping[str, TaskSpec]) -> None:
        self.tasks = dict(tasks)
        self._description = description
        config = description.config
        self.feature_columns: tuple[str, ...] = (*config.numeric, *config.categorical)

    @classmethod
    def from_config(cls, config: SharedBottomConfig, tasks: Mapping[str, TaskSpec]) -> Self:
        """Fit the settings to the tasks; see `common.families.build_family`."""
        check_task_names(tasks)
        inputs = {*config.numeric, *config.categorical}
        for name, task in tasks.items():
            if task.text:
                raise ConfigError(
                    f"tasks.{name}.text: {list(task.text)} are text columns, which shared_bottom can't read; "
                    "set model.family: transformer"
                )
            if isinstance(task.loss, CosineLoss):
                raise ConfigError(
                    f"tasks.{name}.loss: 'cosine' compares the vectors of two texts, and shared_bottom reads rows; "
                    "use mse or huber"
                )
            if task.label in inputs:
                raise ConfigError(
                    f"model: column {task.label!r} is an input and also the label of task {name!r}; "
                    "take it out of numeric or categorical, as the model would be told the answer"
                )
        towers = {
            name: TowerSpec(outputs=task.num_outputs, regression=task.kind == "regression")
            for name, task in tasks.items()
        }
        return cls(SharedBottomDescription(config=config, towers=towers), tasks)

    @classmethod
    def from_description(cls, description: Mapping[str, Any], tasks: Mapping[str, TaskSpec]) -> Self:
        """Rebuild from what `describe` returned; see `common.families.family_from_description`."""
        try:
            parsed = SharedBottomDescription.model_validate(dict(description))
        except ValidationError as error:
            raise ProtocolError("bad_description", f"not a shared_bottom description: {error}") from error
        if missing := sorted(tasks.keys() - parsed.towers.keys()):
            raise ProtocolError("bad_description", f"the model has no tower for the tasks {missing}")
        return cls(parsed, tasks)

    def blueprint(self) -> Blueprint:
        """See `Family.blueprint`."""
        return self._blueprint

    @cached_property
    def _blueprint(self) -> Blueprint:
        tasks = tuple(self.tasks)
        with torch.device("meta"):
            return blueprint_of(SharedBottomModel(self._description, tasks), FAMILY, tasks, _group_of)

    def build(self, tasks: Sequence[str]) -> SharedBottomModel:
        """See `Family.build`."""
        if not tasks or not set(tasks) <= self.tasks.keys():
            raise ConfigError(f"a model is built for some of {sorted(self.tasks)}, not for {sorted(tasks)}")
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return SharedBottomModel(self._description, tasks)

    def initial_values(self, seed: int) -> dict[str, Tensor]:
        """See `Family.initial_values`: uniform in +-1/sqrt(inputs of the layer), as torch's Linear."""
        shapes = {p.name: p.shape for p in self._blueprint.parameters}
        values = {}
        for name, shape in shapes.items():
            bound = shapes[name.removesuffix("bias") + "weight" if name.endswith("bias") else name][-1] ** -0.5
            generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
            values[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return values

    def encode(self, task: str, examples: Examples) -> EncodedRows:
        """See `Family.encode`."""
        config = self._description.config
        if missing := [column for column in self.feature_columns if column not in examples.columns]:
            raise DataError(f"{examples.source}: the model needs the columns {missing}, which are not there")
        numeric = [
            part
            for name, column in config.numeric.items()
            for part in _scaled(_numbers(examples, name, config.missing), column, name, examples)
        ]
        codes, start = [], 0
        for name, values in config.categorical.items():
            codes.append(_codes(examples.categories(name), values, config.missing, start))
            start += len(values) + 1
        count = len(examples)
        dtype = np.float32 if self.tasks[task].kind == "regression" else np.int64
        return EncodedRows(
            numeric=np.stack(numeric, axis=1) if numeric else np.empty((count, 0), dtype=np.float32),
            codes=np.stack(codes, axis=1) if codes else np.empty((count, 0), dtype=np.int32),
            width=self._description.one_hot_width,
            labels=torch.from_numpy(np.array(examples.labels, dtype=dtype)),
        )

    def encoding_key(self, task: str) -> str | None:  # noqa: ARG002  # the family's interface
        """See `Family.encoding_key`: rows of numbers are quick to make."""
        return None

    def describe(self) -> dict[str, Any]:
        """See `Family.describe`."""
        return self._description.model_dump(mode="json")

    def assets(self) -> dict[str, bytes]:
        """See `Family.assets`: none."""
        return {}

    def summary(self) -> ModelSummary:
        """See `Family.summary`."""
        widths = "-".join(str(width) for width in self._description.config.bottom)
        columns = len(self.feature_columns)
        return ModelSummary.of(self._blueprint, f"shared bottom MLP {widths} over {columns} columns")


def _group_of(name: str) -> str:
    """``layer.N`` of the bottom, or ``head``."""
    return "head" if name.startswith("heads.") else ".".join(["layer", name.split(".")[2]])


def _numbers(examples: Examples, name: str, missing: str) -> NDArray[np.float64]:
    """A numeric column, NaN where missing; `DataError` with row numbers where there is no number."""
    values = examples.columns[name]
    if not isinstance(values, np.ndarray):
        cleaned = ["" if value.strip() == missing else value.strip() for value in values]
        examples = replace(examples, columns={name: cleaned})
    return examples.numbers(name, allow_missing=True)


def _scaled(
    numbers: NDArray[np.float64], column: NumericColumn, name: str, examples: Examples
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scaled values, 0 where missing, and the missing indicator; each (N,)."""
    absent = np.isnan(numbers)
    values = np.where(absent, 0.0, numbers)
    if column.log1p:
        if (negative := values < 0).any():
            from common.data.problems import rows_text

            where = rows_text(examples.rows[negative])
            raise DataError(f"{examples.source}: column {name!r} has log1p set, so it can't be negative; {where} is")
        values = np.log1p(values)
    scaled = np.where(absent, 0.0, (values - column.mean) / column.std)
    return scaled.astype(np.float32), absent.astype(np.float32)


def _codes(found: Sequence[str], declared: Sequence[str], missing: str, start: int) -> NDArray[np.int32]:
    """Position of each value's one-hot entry, counted from `start`; the missing indicator is the column's last."""
    absent = start + len(declared)
    position = {"": absent, missing: absent} | {value: start + i for i, value in enumerate(declared)}
    return np.fromiter((position.get(value.strip(), -1) for value in found), dtype=np.int32, count=len(found))
