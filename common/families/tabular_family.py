"""The families over tabular rows, each a model class, behind the one interface (`common.families.base.Family`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from pydantic import ValidationError
from torch import Tensor

from common.blueprint import Blueprint
from common.errors import ConfigError, ProtocolError
from common.families.adversarial import AdversarialModel
from common.families.adversarial_config import AdversarialConfig
from common.families.base import ModelSummary
from common.families.config import AnyTabularConfig
from common.families.cross_stitch import CrossStitchModel
from common.families.cross_stitch_config import CrossStitchConfig
from common.families.encoded_rows import EncodedRows
from common.families.expert_config import MMoEConfig, OMoEConfig, PLEConfig
from common.families.heads import check_task_names
from common.families.layers import first_linear_value
from common.families.mmoe import MMoEModel
from common.families.module_blueprint import placed_blueprint
from common.families.omoe import OMoEModel
from common.families.ple import PLEModel
from common.families.progressive import ProgressiveModel
from common.families.progressive_config import ProgressiveConfig
from common.families.shared_bottom import SharedBottomModel
from common.families.single_task import SingleTaskModel
from common.families.soft_sharing import SoftSharingModel
from common.families.soft_sharing_config import SoftSharingConfig
from common.families.tabular_config import SharedBottomConfig, SingleTaskConfig, TabularConfig
from common.families.tabular_inputs import encode_rows
from common.families.tabular_model import TabularDescription, TabularModel, TowerSpec
from common.families.ties import Tie
from common.losses import CosineLoss

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.tasks import TaskSpec

#: Family to the class of its configuration and of its model.
MODELS: Final[Mapping[str, tuple[type[TabularConfig], type[TabularModel[Any]]]]] = {
    model.family: (config, model)
    for config, model in (
        (SingleTaskConfig, SingleTaskModel),
        (SharedBottomConfig, SharedBottomModel),
        (CrossStitchConfig, CrossStitchModel),
        (ProgressiveConfig, ProgressiveModel),
        (AdversarialConfig, AdversarialModel),
        (OMoEConfig, OMoEModel),
        (MMoEConfig, MMoEModel),
        (PLEConfig, PLEModel),
        (SoftSharingConfig, SoftSharingModel),
    )
}


class TabularFamily:
    """See `common.families.base.Family`.

    Args:
        description: the whole federation's model.
        tasks: the tasks this side has to do with, some of the description's.
    """

    token_rows: tuple[str, ...] = ()

    def __init__(self, description: TabularDescription, tasks: Mapping[str, TaskSpec]) -> None:
        self.tasks = dict(tasks)
        self.name = description.family
        self._description = description
        self._model = MODELS[description.family][1]
        self._config: TabularConfig = description.config
        self.feature_columns: tuple[str, ...] = (*self._config.numeric, *self._config.categorical)

    @classmethod
    def from_config(cls, config: AnyTabularConfig, tasks: Mapping[str, TaskSpec]) -> Self:
        """Fit the settings to the tasks; see `common.families.build_family`."""
        check_task_names(tasks)
        for name, task in tasks.items():
            _check_task(name, task, config, config.family)
        towers = {
            name: TowerSpec(outputs=task.num_outputs, regression=task.kind == "regression")
            for name, task in tasks.items()
        }
        return cls(TabularDescription(family=config.family, config=config, towers=towers), tasks)

    @classmethod
    def from_description(cls, description: Mapping[str, Any], tasks: Mapping[str, TaskSpec]) -> Self:
        """Rebuild from what `describe` returned; see `common.families.family_from_description`."""
        family = str(description.get("family"))
        try:
            parsed = TabularDescription.model_validate(dict(description))
        except ValidationError as error:
            raise ProtocolError("bad_description", f"not a {family} description: {error}") from error
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
            module = self._model(self._description, tasks)
        return placed_blueprint(module, self.name, tasks, lambda name: self._model.place(name, self._description))

    def build(self, tasks: Sequence[str]) -> TabularModel[Any]:
        """See `Family.build`."""
        if not tasks or not set(tasks) <= self.tasks.keys():
            raise ConfigError(f"a model is built for some of {sorted(self.tasks)}, not for {sorted(tasks)}")
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return self._model(self._description, tasks)

    def initial_values(self, seed: int) -> dict[str, Tensor]:
        """See `Family.initial_values`: uniform in +-1/sqrt(inputs of the layer), as torch's Linear, where a family says
        nothing else."""
        shapes = {p.name: torch.Size(p.shape) for p in self._blueprint.parameters}
        values = {}
        for name, shape in shapes.items():
            value = self._model.first_value(name, shape, self._description)
            values[name] = first_linear_value(name, shapes, seed) if value is None else value
        return values

    def encode(self, task: str, examples: Examples) -> EncodedRows:
        """See `Family.encode`."""
        return encode_rows(self._config, examples, regression=self.tasks[task].kind == "regression")

    def encoding_key(self, task: str) -> str | None:  # noqa: ARG002  # the family's interface
        """See `Family.encoding_key`: rows of numbers are quick to make."""
        return None

    def describe(self) -> dict[str, Any]:
        """See `Family.describe`; who builds a family from it is part of a federation."""
        return self._description.model_copy(update={"federated": True}).model_dump(mode="json")

    def assets(self) -> dict[str, bytes]:
        """See `Family.assets`: none."""
        return {}

    def ties(self) -> tuple[Tie, ...]:
        """See `Family.ties`."""
        return self._model.ties(self._description)

    def summary(self) -> ModelSummary:
        """See `Family.summary`."""
        return ModelSummary.of(self._blueprint, self._model.in_words(self._config))


def _check_task(name: str, task: TaskSpec, config: TabularConfig, family: str) -> None:
    if task.text:
        raise ConfigError(
            f"tasks.{name}.text: {list(task.text)} are text columns, which {family} can't read; "
            "set model.family: transformer"
        )
    if isinstance(task.loss, CosineLoss):
        raise ConfigError(
            f"tasks.{name}.loss: 'cosine' compares the vectors of two texts, and {family} reads rows; use mse or huber"
        )
    if task.label in {*config.numeric, *config.categorical}:
        raise ConfigError(
            f"model: column {task.label!r} is an input and also the label of task {name!r}; "
            "take it out of numeric or categorical, as the model would be told the answer"
        )
