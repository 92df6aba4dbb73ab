"""A family small enough to check by hand: token embeddings, a hidden layer with norm, one head per task.

Its slots cover what real families have: an embedding table, matrices, biases, norm weights, a buffer that the
forward pass moves, heads for classification and regression, and (on demand) dropout and tied weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.trainer import TaskData
from common.blueprint import Blueprint, ParameterSpec
from common.data.examples import Examples
from common.families.base import ModelSummary, MultiTaskModel
from common.plan import SharingPlan, Slice
from common.tasks import TaskSpec

VOCABULARY, WIDTH = 20, 4

TASKS: dict[str, TaskSpec] = {
    "mood": TaskSpec.model_validate(
        {"name": "mood", "kind": "classification", "labels": ["bad", "good"], "metrics": ["accuracy", "f1"]}
    ),
    "topic": TaskSpec.model_validate({"name": "topic", "kind": "classification", "labels": ["x", "y", "z"]}),
    "score": TaskSpec.model_validate({"name": "score", "kind": "regression"}),
}


class TinyModel(MultiTaskModel):
    def __init__(self, tasks: Sequence[str], dropout: float, tied: bool) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        if tied:
            self.again = nn.Linear(WIDTH, WIDTH)
            self.again.weight = self.hidden.weight
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({task: nn.Linear(WIDTH, TASKS[task].num_outputs) for task in tasks})

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        real = batch["mask"].unsqueeze(-1)
        pooled = (self.embeddings(batch["ids"]) * real).sum(1) / real.sum(1)
        hidden = self.dropout(torch.tanh(self.norm(self.hidden(pooled))))
        if hasattr(self, "again"):
            hidden = self.again(hidden)
        outputs: Tensor = self.heads[task](hidden)
        return outputs.squeeze(-1) if TASKS[task].kind == "regression" else outputs


@dataclass(frozen=True)
class TinySplit:
    rows: tuple[tuple[int, ...], ...]
    labels: Tensor
    weights: Tensor | None = None

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def collate(self, indices: np.ndarray) -> dict[str, Tensor]:
        rows = [torch.tensor(self.rows[int(index)]) for index in indices]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
        return {"ids": ids, "mask": mask}


class TinyFamily:
    name = "tiny"
    feature_columns: tuple[str, ...] = ()
    token_rows: tuple[str, ...] = ()

    def __init__(
        self,
        tasks: Sequence[str] = tuple(TASKS),
        *,
        dropout: float = 0.0,
        tied: bool = False,
        trained_by: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        self.tasks: Mapping[str, TaskSpec] = {task: TASKS[task] for task in tasks}
        self._dropout, self._tied, self._trained_by = dropout, tied, trained_by or {}
        self.builds = 0

    def blueprint(self) -> Blueprint:
        with torch.random.fork_rng(devices=[]):
            model = TinyModel(tuple(self.tasks), self._dropout, self._tied)
        buffers = {name for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        specs = []
        for name, tensor in [*model.named_parameters(), *((n, model.get_buffer(n)) for n in sorted(buffers))]:
            head = name.split(".")[1] if name.startswith("heads.") else None
            users = frozenset({head}) if head else frozenset(self.tasks)
            group = "head" if head else "embeddings" if name.startswith("embeddings") else "layer.0"
            specs.append(
                ParameterSpec(
                    name,
                    tuple(tensor.shape),
                    "float32",
                    users,
                    self._trained_by.get(name, users),
                    group,
                    "buffer" if name in buffers else "parameter",
                )
            )
        return Blueprint(self.name, tuple(self.tasks), tuple(specs))

    def build(self, tasks: Sequence[str]) -> MultiTaskModel:
        self.builds += 1
        with torch.random.fork_rng(devices=[]):
            return TinyModel(tasks, self._dropout, self._tied)

    def initial_values(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            spec.name: torch.ones(spec.shape)
            if spec.name == "norm.running_var"
            else torch.randn(spec.shape, generator=generator) / 2
            for spec in self.blueprint().parameters
        }

    def encode(self, task: str, examples: Examples) -> TinySplit:
        raise NotImplementedError("the trainer gets encoded splits")

    def encoding_key(self, task: str) -> str | None:  # noqa: ARG002  # the interface of families
        return None

    def describe(self) -> dict[str, Any]:
        return {}

    def assets(self) -> dict[str, bytes]:
        return {}

    def ties(self) -> tuple[()]:
        return ()

    def summary(self) -> ModelSummary:
        return ModelSummary.of(self.blueprint(), "tiny")


def tiny_split(task: str, size: int, seed: int = 0, *, words: int = VOCABULARY) -> TinySplit:
    """Random rows of 1 to 9 tokens below `words`, with labels that the tokens determine."""
    rng = np.random.default_rng(seed)
    rows = tuple(tuple(int(token) for token in rng.integers(0, words, rng.integers(1, 10))) for _ in range(size))
    means = torch.tensor([float(np.mean(row)) for row in rows])
    if TASKS[task].kind == "regression":
        return TinySplit(rows, means / words)
    classes = TASKS[task].num_outputs
    return TinySplit(rows, (means * classes / words).long().clamp(max=classes - 1))


def tiny_data(sizes: Mapping[str, int]) -> dict[str, TaskData]:
    """Train and validation rows of each task."""
    return {task: TaskData(tiny_split(task, size, 1), tiny_split(task, 16, 2)) for task, size in sizes.items()}


def values_of(family: TinyFamily, slice_: Slice, seed: int = 5) -> dict[str, Tensor]:
    """What a server would send: the family's initial values, the same for each slot of a parameter."""
    initial = family.initial_values(seed)
    return {slot.id: initial[slot.parameter].clone() for slot in slice_.slots}


def shared_slice(family: TinyFamily, *tasks: str) -> Slice:
    """The slice of a client of these tasks under the default plan."""
    return SharingPlan.shared(family.blueprint()).slice(tasks)
