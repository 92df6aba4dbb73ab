"""Task heads of the transformer family: from the pooled vector (B, H) to the task's outputs.

A task whose pairs are read separately has two vectors u and v for each row, (B, 2, H). Its head gets the features of
InferSent (Conneau et al. 2017, arXiv 1705.02364), `pair_features`, as its one vector, or is the cosine of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ConfigError
from common.families.config import HeadConfig, Pairs
from common.losses import CosineLoss
from common.seeds import derive_seed
from common.strict_model import StrictModel

if TYPE_CHECKING:
    from common.tasks import TaskSpec

#: Names that a task can't have because `nn.ModuleDict` has them as attributes (train, type, keys ...).
_ATTRIBUTES_OF_A_MODULE = frozenset(dir(nn.ModuleDict()))


class HeadSpec(StrictModel):
    """One head, complete: what travels in a family's description."""

    kind: Literal["linear", "mlp", "cosine"]
    """`linear`: Dropout-Linear; `mlp`: Linear-ReLU-Dropout-Linear; `cosine`: the cosine of two vectors."""

    hidden_size: int | None
    """Width of the hidden layer of an `mlp`."""

    dropout: float
    """Probability of dropping a value."""

    outputs: int
    """Number of classes, or 1."""

    regression: bool
    """Whether the output is a score; the last dimension is then dropped."""

    separate: bool = False
    """Whether the task's rows are pairs of texts that are read one by one."""

    score_range: tuple[float, float] | None = None
    """The scores of cosines 0 and 1, for a `cosine` head."""

    @model_validator(mode="after")
    def _a_cosine_is_of_two_vectors(self) -> Self:
        if (self.kind == "cosine") != (self.score_range is not None) or (self.kind == "cosine" and not self.separate):
            raise ValueError("a cosine head, and no other, has score_range; it is for separate pairs")
        return self


def head_spec(config: HeadConfig, task: TaskSpec, *, default_dropout: float, pairs: Pairs, input_size: int) -> HeadSpec:
    """Fill in what the configuration left to the model.

    Args:
        config: the head's own section.
        task: whose head it is.
        default_dropout: the model's.
        pairs: the model's.
        input_size: width of what the head reads.

    Raises:
        ConfigError: the head does not fit the task.
    """
    where = f"model.heads.{task.name}"
    if config.pairs is not None and len(task.text) != 2:
        raise ConfigError(f"{where}.pairs: {config.pairs!r} is for a task with two texts; {task.name!r} has one")
    separate = len(task.text) == 2 and (config.pairs or pairs) == "separate"
    if config.kind == "cosine":
        if not separate or task.kind != "regression" or task.label_range is None:
            raise ConfigError(
                f"{where}: a cosine head is for a regression over two texts with `label_range` and pairs: separate"
            )
    elif isinstance(task.loss, CosineLoss):
        raise ConfigError(f"tasks.{task.name}.loss: 'cosine' needs {where}: cosine, which is a {config.kind} head now")
    return HeadSpec(
        kind=config.kind,
        hidden_size=(config.hidden_size or input_size) if config.kind == "mlp" else None,
        dropout=0.0 if config.kind == "cosine" else default_dropout if config.dropout is None else config.dropout,
        outputs=task.num_outputs,
        regression=task.kind == "regression",
        separate=separate,
        score_range=task.label_range if config.kind == "cosine" else None,
    )


class LinearHead(nn.Module):
    """Dropout-Linear: (B, H) to (B, C)."""

    def __init__(self, input_size: int, spec: HeadSpec) -> None:
        super().__init__()
        self.dropout = nn.Dropout(spec.dropout)
        self.output = nn.Linear(input_size, spec.outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self.output(self.dropout(pooled))
        return logits


class MlpHead(nn.Module):
    """Linear-ReLU-Dropout-Linear: (B, H) to (B, C)."""

    def __init__(self, input_size: int, spec: HeadSpec) -> None:
        super().__init__()
        hidden_size = spec.hidden_size or input_size
        self.hidden = nn.Linear(input_size, hidden_size)
        self.dropout = nn.Dropout(spec.dropout)
        self.output = nn.Linear(hidden_size, spec.outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self.output(self.dropout(torch.relu(self.hidden(pooled))))
        return logits


class CosineHead(nn.Module):
    """Cosine of two vectors on the scale of the labels: (B, 2, H) to (B, 1). It has no parameters.

    Cosine 0 is the lowest label and 1 the highest, as Sentence-BERT trains on STS-B (Reimers & Gurevych 2019, arXiv
    1908.10084); a negative cosine gives a score below the lowest.
    """

    def __init__(self, score_range: tuple[float, float]) -> None:
        super().__init__()
        self._lowest, self._highest = score_range

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores (B, 1)."""
        cosine = functional.cosine_similarity(vectors[:, 0].float(), vectors[:, 1].float(), dim=-1)
        return (self._lowest + (self._highest - self._lowest) * cosine).unsqueeze(-1)


def pair_features(u: Tensor, v: Tensor) -> Tensor:
    """(B, H) twice to (B, 4H): [u, v, |u-v|, u*v]."""
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


def build_heads(specs: Mapping[str, HeadSpec], input_size: int) -> nn.ModuleDict:
    """The heads of these tasks, on the current default device.

    Args:
        specs: task to head.
        input_size: H, width of what the heads read.
    """
    return nn.ModuleDict({task: _head(input_size, spec) for task, spec in specs.items()})


def _head(input_size: int, spec: HeadSpec) -> nn.Module:
    width = 4 * input_size if spec.separate else input_size
    match spec.kind:
        case "linear":
            return LinearHead(width, spec)
        case "mlp":
            return MlpHead(width, spec)
        case "cosine":
            assert spec.score_range is not None, "HeadSpec sees to it"
            return CosineHead(spec.score_range)


def check_task_names(names: Mapping[str, object]) -> None:
    """Refuse task names that can't be part of a parameter's name.

    Raises:
        ConfigError: a name holds a dot, or is an attribute of torch's module container.
    """
    for name in names:
        if "." in name or name in _ATTRIBUTES_OF_A_MODULE:
            raise ConfigError(
                f"task {name!r}: the name becomes part of parameter names (heads.{name}.output.weight), so it can't "
                "hold a dot or be a word that torch modules reserve, such as train, type or keys; rename the task"
            )


def initial_head_value(name: str, shape: tuple[int, ...], *, seed: int, std: float) -> Tensor:
    """First value of one head tensor: weights normal(0, std), biases zero.

    Drawn from (seed, name) alone, so a task's head starts the same whatever other tasks there are
    and in whichever round the task joins.
    """
    if len(shape) < 2:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
    return torch.empty(shape).normal_(0.0, std, generator=generator)
