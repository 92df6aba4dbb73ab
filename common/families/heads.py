"""Task heads of the transformer family: from the pooled vector (B, H) to the task's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.families.config import HeadConfig
from common.seeds import derive_seed
from common.strict_model import StrictModel

#: Names that a task can't have because `nn.ModuleDict` has them as attributes (train, type, keys ...).
_ATTRIBUTES_OF_A_MODULE = frozenset(dir(nn.ModuleDict()))


class HeadSpec(StrictModel):
    """One head, complete: what travels in a family's description."""

    kind: Literal["linear", "mlp"]
    """`linear`: Dropout-Linear; `mlp`: Linear-ReLU-Dropout-Linear."""

    hidden_size: int | None
    """Width of the hidden layer of an `mlp`."""

    dropout: float
    """Probability of dropping a value."""

    outputs: int
    """Number of classes, or 1."""

    regression: bool
    """Whether the output is a score; the last dimension is then dropped."""


def head_spec(
    config: HeadConfig, *, default_dropout: float, input_size: int, outputs: int, regression: bool
) -> HeadSpec:
    """Fill in what the configuration left to the model."""
    return HeadSpec(
        kind=config.kind,
        hidden_size=(config.hidden_size or input_size) if config.kind == "mlp" else None,
        dropout=default_dropout if config.dropout is None else config.dropout,
        outputs=outputs,
        regression=regression,
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


def build_heads(specs: Mapping[str, HeadSpec], input_size: int) -> nn.ModuleDict:
    """The heads of these tasks, on the current default device."""
    return nn.ModuleDict(
        {
            task: LinearHead(input_size, spec) if spec.kind == "linear" else MlpHead(input_size, spec)
            for task, spec in specs.items()
        }
    )


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
