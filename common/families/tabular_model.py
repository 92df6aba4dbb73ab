"""What all models over tabular rows have in common: a module per family, and where each of its tensors belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from common.families.base import MultiTaskModel
from common.families.config import AnyTabularConfig
from common.families.layers import Tower
from common.families.module_blueprint import Place
from common.families.tabular_config import TabularConfig
from common.families.ties import Tie
from common.strict_model import StrictModel

#: The `model:` section of one family.
Config = TypeVar("Config", bound=TabularConfig)


class TowerSpec(StrictModel):
    """What a tower puts out."""

    outputs: int
    """Number of classes, or 1."""
    regression: bool
    """Whether the output is a score; the last dimension is then dropped."""


class TabularDescription(StrictModel):
    """What a client is told; a field it does not know could change the model, so that is refused."""

    format: Literal[1] = 1
    family: str
    config: AnyTabularConfig
    towers: dict[str, TowerSpec]
    """The tower of every task of the federation, in configuration order: also of those a client has nothing to do with,
    since a model may read what other tasks train."""
    federated: bool = False
    """Whether a server averages the models of this description; it then couples what is tied (`Family.ties`), and
    the loss does not."""


class TabularModel(MultiTaskModel, Generic[Config]):
    """The base of the families; a subclass is one family.

    A subclass builds the parts that some tasks read, and says of every tensor by its name who reads and trains it.
    Parts of one role have the same names in all families (``columns.TASK.*``, ``experts.N.*``, ``heads.TASK.*``), so
    that they start from the same values for the same seed.

    Args:
        description: the whole federation's model.
        tasks: those to build for, in any order; some of the description's.
    """

    family: ClassVar[str]

    def __init__(self, description: TabularDescription, tasks: Sequence[str]) -> None:
        super().__init__()
        self.config = cast("Config", description.config)
        self.tasks = tuple(tasks)
        self.all_tasks = tuple(description.towers)
        self._towers = description.towers

    def towers(self, input_size: int) -> nn.ModuleDict:
        """A tower (B, input_size) to (B, C) or (B,) for each of the model's tasks."""
        config = self.config
        return nn.ModuleDict(
            {
                task: Tower(
                    input_size,
                    config.tower,
                    config.dropout,
                    self._towers[task].outputs,
                    score=self._towers[task].regression,
                )
                for task in self.tasks
            }
        )

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) or scores (B,); `batch` holds features (B, F)."""
        return self.forward_parts({task: slice(None)}, batch)[task]

    def forward_parts(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `MultiTaskModel.forward_parts`; every family computes what tasks share once for the whole batch."""
        return dict(self.training_pass(parts, batch).outputs)

    @classmethod
    def in_words(cls, config: TabularConfig) -> str:
        """The model in a few words, for logs and summaries."""
        return f"{cls.family} over {len(config.numeric) + len(config.categorical)} columns"

    @classmethod
    def place(cls, name: str, description: TabularDescription) -> Place:
        """Who reads and who trains the tensor of this name, and the group it is in.

        Args:
            name: as in ``named_parameters()`` of a model for all tasks.
            description: the whole federation's model.
        """
        raise NotImplementedError

    @classmethod
    def ties(cls, description: TabularDescription) -> tuple[Tie, ...]:  # noqa: ARG003  # most families tie nothing
        """See `Family.ties`."""
        return ()

    @classmethod
    def first_value(cls, name: str, shape: torch.Size, description: TabularDescription) -> Tensor | None:
        """The value before the first round of a tensor that isn't drawn; None: it is, as torch's Linear draws it."""
        del name, shape, description
        return None


def head_place(name: str) -> Place | None:
    """The place of a tower's tensor, ``heads.TASK.*``; None for any other."""
    if not name.startswith("heads."):
        return None
    task = frozenset({name.split(".")[1]})
    return Place(task, task, "head")
