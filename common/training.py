"""How a client trains in one round: the settings that travel with the work, and where in the run a round stands.

Nothing here keeps a counter. The learning rate follows from the round (`Position`) and the step within it, so a
client that restarts, joins late or redoes a round uses the same rates as one that was there all along.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from common.strict_model import StrictModel

Precision = Literal["fp32", "bf16"]
TaskSampling = Literal["proportional", "even", "sqrt", "temperature", "annealed", "performance"]
LossWeighting = Literal["fixed", "uncertainty", "dwa", "gradnorm"]
SurgeryMethod = Literal["none", "pcgrad", "cagrad", "upgrad", "mgda", "aligned_mtl"]


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
    """Examples per optimiser step, of one task or (`mixed_batches`) of several. An epoch's last batch may be
    smaller."""

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
    """How a client of several tasks shares its steps among them (with `mixed_batches` the examples of its steps); the
    round's total stays the same. n is a task's number of batches per epoch (mixed: of examples). `proportional`: by
    n; `even`; `sqrt`: by its root; `temperature`: by n^(1/T), T being `sampling_temperature`; `annealed`: by n^a, with
    a falling over the rounds from 1 to 0.2 (Stickland & Murray 2019, arXiv 1902.02671); `performance`: by how far the
    received model is from a perfect score on the client's own validation data, the weakest task most often."""

    sampling_temperature: float = Field(default=5.0, ge=1, allow_inf_nan=False)
    """T of `temperature`: 1 is proportional, the larger the more even. 5 is what multilingual translation settled on
    (Arivazhagan et al. 2019, arXiv 1907.05019)."""

    mixed_batches: bool = False
    """Each optimiser step holds examples of several tasks, in one pass through the encoder where they share it and
    their lengths agree. What a step minimises is the sum over its tasks of weight times mean loss; with batches of one
    task it is that task's weight times its mean loss."""

    loss_weighting: LossWeighting = "fixed"
    """Where a task's loss weight comes from in a client of several tasks (a client of one keeps weight 1, or its
    fixed one). `fixed`: `loss_weights`. `uncertainty`: learnt log variances (Kendall et al. 2018, arXiv 1705.07115).
    `dwa`: how fast the client's losses fell from the round before last to the last (Liu et al. 2019, arXiv
    1803.10704). `gradnorm`: gradients of equal size at the last shared layer, more for tasks that lag (Chen et al.
    2018, arXiv 1711.02257); needs `mixed_batches`."""

    loss_weights: Mapping[str, PositiveFloat] = {}
    """Task to the weight of its loss, for `fixed`; 1 for a task that is not named."""

    loss_weight_rate: float = Field(default=0.025, gt=0, allow_inf_nan=False)
    """Learning rate of the weights of `uncertainty` and `gradnorm`."""

    gradnorm_alpha: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    """How strongly `gradnorm` favours tasks whose loss has fallen least; 0 asks for equal gradients."""

    dwa_temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Temperature of `dwa`: the larger, the more even."""

    surgery: SurgeryMethod = "none"
    """What is done with conflicting gradients of a client's own tasks in the parameters they share (torchjd's
    implementations; heads keep their own gradients); needs `mixed_batches`. `pcgrad`: Yu et al. 2020, arXiv 2001.06782;
    `cagrad`: Liu et al. 2021, arXiv 2110.14048; `upgrad`: Quinton & Rey 2024, arXiv 2406.16232; `mgda`: Sener & Koltun
    2018, arXiv 1810.04650; `aligned_mtl`: Senushkin et al. 2023, arXiv 2305.19000. Where gradients agree `pcgrad` is
    their sum; `upgrad`, `cagrad`, `mgda` and `aligned_mtl` have the size of a mean."""

    cagrad_c: float = Field(default=0.5, ge=0, lt=1, allow_inf_nan=False)
    """How far `cagrad` may stray from the mean gradient, as a share of its size; 0 is the mean."""

    length_buckets: bool = True
    """Put examples of similar length into one batch, so that little padding is computed."""

    eval_batch_size: int = Field(default=128, ge=1)
    """Examples per batch of an evaluation."""

    precision: Precision = "fp32"
    """`bf16` computes the forward and backward pass in bfloat16 (autocast); parameters and updates stay float32."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the client's tensor operations; null leaves the choice to the client."""

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
        if self.loss_weights and self.loss_weighting != "fixed":
            raise ValueError(
                f"loss_weights {dict(self.loss_weights)} are for loss_weighting 'fixed'; "
                f"{self.loss_weighting!r} finds its own: leave loss_weights out"
            )
        if not self.mixed_batches:
            together = {"loss_weighting": self.loss_weighting == "gradnorm", "surgery": self.surgery != "none"}
            for key in (key for key, needed in together.items() if needed):
                raise ValueError(
                    f"{key} {getattr(self, key)!r} compares gradients of several tasks in one step: "
                    "set mixed_batches: true"
                )
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
    if mixes(settings, num_examples):
        return epoch_steps(mixed_examples(settings, num_examples), settings.batch_size)
    one_epoch = sum(epoch_steps(count, settings.batch_size) for count in num_examples.values())
    return _at_least_one(settings, one_epoch)


def mixes(settings: TrainSettings, tasks: Collection[str]) -> bool:
    """Whether steps hold several tasks. A client of one task trains as it would without `mixed_batches`."""
    return settings.mixed_batches and len(tasks) > 1


def mixed_examples(settings: TrainSettings, num_examples: Mapping[str, int]) -> int:
    """Examples of one round of mixed batches, over all tasks; arguments as for `round_steps`."""
    if settings.local_steps is not None:
        return settings.local_steps * settings.batch_size
    return _at_least_one(settings, sum(num_examples.values()))


def _at_least_one(settings: TrainSettings, one_epoch: int) -> int:
    if settings.local_epochs is None:
        raise AssertionError("TrainSettings holds local_epochs or local_steps")
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
