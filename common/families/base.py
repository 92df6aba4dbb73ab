"""What every model family offers, so that server, wire, plan and client need not know which one they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from common.blueprint import Blueprint

if TYPE_CHECKING:
    from common.data.examples import Examples
    from common.families.ties import Tie
    from common.tasks import TaskSpec


@dataclass(frozen=True)
class GateUse:
    """What one gate did with one task's rows, detached from the graph.

    Attributes:
        mass: (E,) float32, the sum over the rows of each expert's weight.
        entropy: scalar, the sum over the rows of the entropy of their weights, in nats.
    """

    mass: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class TrainingPass:
    """What a model computes of a batch that it is trained on.

    Attributes:
        outputs: task to what `MultiTaskModel.forward` gives for its rows.
        penalty: a scalar to be added to the weighted sum of the tasks' mean losses, a mean over the rows of the pass
            (load balance, orthogonality ...); None: there is none.
        gates: task to gate to what it did; see `MultiTaskModel.gates`.
    """

    outputs: Mapping[str, Tensor]
    penalty: Tensor | None = None
    gates: Mapping[str, Mapping[str, GateUse]] = field(default_factory=dict)


class MultiTaskModel(nn.Module):
    """A module whose forward pass is told the task.

    Its `named_parameters()` and floating-point buffers carry the blueprint's names.

    Attributes:
        cuts_gradients: whether a task's loss reaches by itself no parameter that the task reads and another trains, so
            that both can be in one pass.
    """

    cuts_gradients: ClassVar[bool] = False

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Outputs of one task.

        Args:
            task: one of the tasks the model was built for.
            batch: as `EncodedSplit.collate` returns it, on the model's device.

        Returns:
            Logits of shape (B, C) for C classes, or scores of shape (B,) for a regression.
        """
        raise NotImplementedError

    def forward_parts(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of several tasks' rows in one batch, through the shared layers once where the model can do so.

        Args:
            parts: task to where its rows lie along the first dimension of every tensor of the batch. Rows may be
                several tasks' at once: people of whom two things are known.
            batch: the model's inputs for all of them, such as `common.families.encoded_text.collate_parts` gives.

        Returns:
            task to what `forward` gives for its rows alone, up to the padding that the joint batch adds.
        """
        return {
            task: self(task, {name: tensor[rows] for name, tensor in batch.items()}) for task, rows in parts.items()
        }

    def training_pass(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> TrainingPass:
        """`forward_parts` in training, with what some families want beside it: a penalty, what their gates do.

        Random choices (dropout, the noise of gates) come from torch's global stream. No control flow depends on
        values, so that many models can be computed at once by `torch.func.vmap`.
        """
        return TrainingPass(self.forward_parts(parts, batch))

    def gates(self, task: str) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002  # a family with gates has them by task
        """Gate to the blueprint groups of the experts it weighs, in the order of `GateUse.mass`; none: no experts."""
        return {}


class EncodedSplit(Protocol):
    """Rows of one task, ready for the model.

    Attributes:
        labels: (N,) int64 class ids, or float32 scores.
        lengths: (N,) int64, what each row costs: tokens, or ones for tabular rows.
        weights: (N,) float32, what each row weighs in the loss; None where all weigh 1.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def weights(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def collate(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The model's inputs for these rows, padded to the longest of them; labels are not inside."""
        ...


@dataclass(frozen=True)
class ModelSummary:
    """The figures a run is known by; parameters only, buffers are not counted.

    Attributes:
        family: the family's name.
        encoder: the base model, in words.
        shared_parameters: number of parameters outside the heads.
        head_parameters: number of parameters of each task's head.
        total_parameters: both together.
    """

    family: str
    encoder: str
    shared_parameters: int
    head_parameters: dict[str, int]
    total_parameters: int

    @classmethod
    def of(cls, blueprint: Blueprint, encoder: str) -> ModelSummary:
        """Count the parameters of a blueprint; the group ``head`` is what belongs to one task."""
        parameters = [p for p in blueprint.parameters if p.kind == "parameter"]
        heads = {
            task: sum(p.numel for p in parameters if p.group == "head" and task in p.used_by)
            for task in blueprint.tasks
        }
        shared = sum(p.numel for p in parameters if p.group != "head")
        return cls(blueprint.family, encoder, shared, heads, shared + sum(heads.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `summary.json` holds it under `model`."""
        return asdict(self)

    def table(self) -> str:
        """The summary as aligned lines for a log."""
        rows = [
            ("base model", self.encoder),
            ("tasks", ", ".join(self.head_parameters)),
            ("shared parameters", f"{self.shared_parameters:,}"),
            *((f"head {task}", f"{count:,}") for task, count in self.head_parameters.items()),
            ("total parameters", f"{self.total_parameters:,}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


class Family(Protocol):
    """One kind of model for a set of tasks.

    Attributes:
        name: as in the configuration's `model.family`.
        tasks: the specification of each task.
        feature_columns: input columns besides the tasks' text columns, for `load_examples(columns=...)`.
        token_rows: parameters whose rows a batch's `input_ids` choose, and which nothing reads otherwise.
    """

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> Mapping[str, TaskSpec]: ...

    @property
    def feature_columns(self) -> tuple[str, ...]: ...

    @property
    def token_rows(self) -> tuple[str, ...]: ...

    def blueprint(self) -> Blueprint:
        """Every tensor that is shared or sent, once; a tied tensor under one name. Allocates no weights."""
        ...

    def build(self, tasks: Sequence[str]) -> MultiTaskModel:
        """A float32 model on the CPU with the blueprint's tensors that these tasks use, values arbitrary.

        Leaves torch's global random state as it was.

        Raises:
            ConfigError: a task is unknown, or none is given.
        """
        ...

    def initial_values(self, seed: int) -> dict[str, Tensor]:
        """The value of every blueprint tensor before the first round; for the server.

        Float32, contiguous, deterministic in `seed`, independent of the global random state and of
        which other tasks there are. Memory: one copy of the model.

        Raises:
            ConfigError: pretrained weights are asked for and can't be had.
        """
        ...

    def encode(self, task: str, examples: Examples) -> EncodedSplit:
        """Turn rows into model inputs, kept compactly; `DataError` where a row can't be read."""
        ...

    def encoding_key(self, task: str) -> str | None:
        """All that decides, beside the texts of the rows, what ids `encode` makes of them.

        None: what it makes is not worth keeping on disk.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """All that a client needs, besides `assets`, to rebuild the family without disk or network; JSON data."""
        ...

    def assets(self) -> dict[str, bytes]:
        """Files a client needs, by name (such as tokenizer.json); sent once when it joins."""
        ...

    def ties(self) -> tuple[Tie, ...]:
        """What the server is to keep near each other in a federation, beside averaging; see `server.coupling`."""
        ...

    def summary(self) -> ModelSummary:
        """The figures for the log and `summary.json`."""
        ...
