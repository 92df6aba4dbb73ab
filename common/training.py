"""How a client trains in one round: the settings that travel with the work, and where in the run a round stands.

Nothing here keeps a counter. The learning rate follows from the round (`Position`) and the step within it, so a
client that restarts, joins late or redoes a round uses the same rates as one that was there all along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from common.strict_model import StrictModel

Precision = Literal["fp32", "bf16", "auto"]
TaskSampling = Literal["proportional", "even", "sqrt"]


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the run a round stands.

    Attributes:
        round: the round's number, from 1.
        target_rounds: the rounds of the whole run.
    """

    round: int
    target_rounds: int

    def __post_init__(self) -> None:
        if not 1 <= self.round <= self.target_rounds:
            raise ValueError(f"round {self.round} does not lie in 1..{self.target_rounds}")


class TrainSettings(StrictModel):
    """Local training in one round. Give `local_epochs` or `local_steps`; one epoch when neither is given."""

    local_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Passes over the client's own data per round; 0.5 is half a pass. 1 when `local_steps` is not given either."""

    local_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps per round instead of epochs; more than the data gives go on with a fresh permutation."""

    batch_size: int = Field(default=32, ge=1)
    """Examples per optimiser step; each step's batch holds one task. An epoch's last batch may be smaller."""

    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate of the run."""

    head_learning_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Multiplier of the learning rate for the heads (parameters of group `head`)."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Local optimiser; its state starts afresh every round, as the parameters it belongs to have moved."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of `sgd`; must be 0 with `adamw`."""

    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Decay of weight matrices. Biases, norm weights and everything in group `embeddings` are left out: a
    decayed embedding table would change in every row, and rows that no example touched could not be left out
    of the update."""

    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the whole run's steps in which the learning rate rises linearly to its peak."""

    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: fall linearly towards 0 at the end of the run, or stay."""

    max_grad_norm: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Gradients of a step are scaled down to this norm; null for no limit."""

    task_sampling: TaskSampling = "proportional"
    """How a client of several tasks shares its steps among them: by their number of batches, evenly, or by the
    square root of their number of batches. The round's total stays the same."""

    length_buckets: bool = True
    """Put examples of similar length into one batch, so that little padding is computed."""

    compact_vocabulary: bool = True
    """Train only those embedding rows that the round's batches touch. The result is that of the whole table (to
    rounding in the gradient's norm), in less time and memory. Tables stay whole where that would not be so: with
    weight decay on embeddings, with a federated correction, and in encoders that use token ids for more than
    looking them up; and with `compile`."""

    eval_batch_size: int = Field(default=128, ge=1)
    """Examples per batch of an evaluation."""

    precision: Precision = "fp32"
    """`bf16` computes the forward and backward pass in bfloat16 (autocast); parameters and updates stay float32.
    `auto`: each client times both with its model and data when it first gets work, and takes bf16 for the whole run
    where it is clearly faster. What is taken follows from timing, so two runs may differ (docs/determinism.md)."""

    compile: bool = False
    """Compile the model's forward and backward pass (`torch.compile`): on CPUs it needs a C++ compiler, on CUDA
    Triton, and the first steps of a run take a minute. Dropout then draws from torch's own stream."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the client's tensor operations; null: as many as the client has cores, see docs/determinism.md."""

    deterministic: bool = True
    """Use only operations that give the same bits each time on the same machine, or fail where there is none."""

    @model_validator(mode="before")
    @classmethod
    def _one_epoch_unless_told(cls, data: Any) -> Any:  # noqa: ANN401  # pydantic hands over raw input
        if isinstance(data, dict) and data.get("local_epochs") is None and data.get("local_steps") is None:
            return {**data, "local_epochs": 1.0}
        return data

    @model_validator(mode="after")
    def _no_contradiction(self) -> TrainSettings:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError(
                f"local_epochs ({self.local_epochs}) and local_steps ({self.local_steps}) exclude each other: "
                "set one of them to null"
            )
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError(f"momentum ({self.momentum}) belongs to optimizer 'sgd'; 'adamw' has its own")
        return self


def epoch_steps(num_examples: int, batch_size: int) -> int:
    """Batches in one pass over `num_examples`, the last one possibly smaller."""
    return math.ceil(num_examples / batch_size)


def round_steps(settings: TrainSettings, num_examples: Mapping[str, int]) -> int:
    """Optimiser steps that a client takes in one round, over all its tasks.

    Args:
        settings: how to train.
        num_examples: task to the number of the client's training examples; at least one task.
    """
    if settings.local_steps is not None:
        return settings.local_steps
    if settings.local_epochs is None:
        raise AssertionError("TrainSettings holds local_epochs or local_steps")
    one_epoch = sum(epoch_steps(count, settings.batch_size) for count in num_examples.values())
    # Rounded up so that a small client always takes a step; 1e-9 keeps 0.07 * 100 from becoming 8.
    return max(1, math.ceil(settings.local_epochs * one_epoch - 1e-9))


def learning_rate_factor(settings: TrainSettings, position: Position, step: int, steps: int) -> float:
    """Learning rate of one step as a share of the peak, in (0, 1].

    The run has ``T = target_rounds * steps`` steps for this client and the step in hand is number
    ``g = (round - 1) * steps + step``. Over the first ``w = warmup * T`` steps the factor is ``(g + 1) / w``, at
    most 1, so the first step already learns; then ``(T - g) / (T - w)`` for `linear`, so the last one still does.

    Args:
        settings: warm-up share and schedule.
        position: where in the run the round stands.
        step: the step within the round, from 0.
        steps: the steps of each round.
    """
    total = position.target_rounds * steps
    done = (position.round - 1) * steps + step
    warmup = settings.warmup * total
    if done < warmup:
        return min(1.0, (done + 1) / warmup)
    if settings.schedule == "constant":
        return 1.0
    return (total - done) / (total - warmup)
