"""How a client trains in one round: the settings that travel with the work, and where in the run a round stands.

Nothing here keeps a counter. The learning rate follows from the round (`Position`) and the step within it, so a
client that restarts, joins late or redoes a round uses the same rates as one that was there all along.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, field_validator, model_validator

from common.selectors import check_selector
from common.strict_model import StrictModel

Precision = Literal["fp32", "bf16", "auto"]
TaskSampling = Literal["proportional", "even", "sqrt", "temperature", "annealed", "performance"]
LossWeighting = Literal["fixed", "uncertainty", "dwa", "gradnorm"]
SurgeryMethod = Literal["none", "pcgrad", "cagrad", "upgrad", "mgda", "aligned_mtl"]

#: Settings of which at most one is given; whatever sets one of a pair takes the place of the other.
EXCLUSIVE: Final = (("local_epochs", "local_steps"), ("warmup", "warmup_steps"))

Selectors = Annotated[
    tuple[Annotated[str, AfterValidator(check_selector)], ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    Field(min_length=1),
]
"""One selector of `common.selectors`, or several that are joined."""


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


class GroupRates(StrictModel):
    """How fast some parameters learn and decay. What is left out stays as it was."""

    match: Selectors
    """Which: a selector or a list, such as `norms`, `[embeddings, layers:0-3]` or `encoder.*.attention.*`."""

    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Multiplier of the learning rate, in place of what `head_learning_rate` and `layer_decay` make of it."""

    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Decay of the matrices among them, embeddings included; biases and norm weights never decay."""

    @model_validator(mode="after")
    def _says_something(self) -> GroupRates:
        if self.learning_rate is None and self.weight_decay is None:
            raise ValueError("give learning_rate or weight_decay, or both: this entry changes nothing")
        return self


class Opening(StrictModel):
    """What is opened for training within a round; it stays open to the round's end."""

    epoch: float = Field(ge=0, allow_inf_nan=False)
    """Passes over the client's data, from the round's beginning, after which it is opened; 0.5 is half a pass, and
    part of a step is rounded down."""

    open: Selectors
    """Which parameters: a selector or a list."""


class TrainSettings(StrictModel):
    """Local training in one round. Give `local_epochs` or `local_steps`; one epoch when neither is given."""

    local_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Passes over the client's own data per round; 0.5 is half a pass. 1 when `local_steps` is not given either."""

    local_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps per round instead of epochs; more than the data gives go on with a fresh permutation."""

    batch_size: int = Field(default=32, ge=1)
    """Examples per optimiser step, of one task or (`mixed_batches`) of several. An epoch's last batch may be
    smaller."""

    max_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Most seconds of a round's training: it ends with the step in which they are used up, or earlier when epochs or
    steps are done. What was done is reported and weighs. Two runs then differ: it depends on the machine's speed."""

    micro_batch_size: int | None = Field(default=None, ge=1)
    """Compute a batch in pieces of at most so many examples, to save memory; the step is that of the whole batch. Null
    computes it at once. Dropout draws other masks; batch normalisation sees the pieces."""

    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate of the run."""

    head_learning_rate: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Multiplier of the learning rate for the heads, which start from nothing where the encoder does not. 1 where all
    is trained from scratch."""

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate for each step down from the top: heads and pooler have the full rate, the last layer
    this factor of it, the layer below its square, and so on to the embeddings; 1 treats all alike."""

    groups: tuple[GroupRates, ...] = ()
    """Other rates and decay for chosen parameters, such as `{match: norms, learning_rate: 0.5}`. Where several entries
    choose a parameter, the last of them that says something counts. An entry that chooses none is an error."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Local optimiser; its state starts afresh every round, as the parameters it belongs to have moved."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of `sgd`; must be 0 with `adamw`."""

    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Decay of weight matrices. Biases, norm weights and everything in group `embeddings` are left out: a
    decayed embedding table would change in every row, and rows that no example touched could not be left out
    of the update."""

    warmup: float | None = Field(default=None, ge=0, le=1)
    """Share of the whole run's steps in which the learning rate rises linearly to its peak; 0.1 when `warmup_steps` is
    not given either."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """The same as a number of steps of the client, counted over its rounds, instead of a share."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up: fall towards 0 at the end of the run, linearly or as half a cosine, or stay."""

    max_grad_norm: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Gradients of a step are scaled down to this norm; null for no limit."""

    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """FedProx (Li et al. 2020, arXiv 1812.06127): pull every parameter that travels back towards its received value,
    with this factor (mu) times the distance as part of the gradient; 0 is plain federated averaging."""
    unfreeze: tuple[Opening, ...] = ()
    """Progressive unfreezing within each round, such as `[{epoch: 0, open: heads}, {epoch: 1, open: everything}]`: what
    no entry has opened yet is not trained. Empty: everything is open from the start."""

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

    same_rows: bool = False
    """The tasks of a client are labels of the same rows, such as two things known of each person: a step takes one
    batch of rows for all of them, in one pass where they share the encoder, and minimises the sum of weight times mean
    loss; `batch_size` counts rows, and an epoch holds every row once. A client whose tasks have other rows ends with an
    error. Needs `mixed_batches: false` and leaves nothing to sample (`task_sampling: proportional`)."""

    loss_weighting: LossWeighting = "fixed"
    """Where a task's loss weight comes from in a client of several tasks (a client of one keeps weight 1, or its
    fixed one). `fixed`: `loss_weights`. `uncertainty`: learnt log variances (Kendall et al. 2018, arXiv 1705.07115).
    `dwa`: how fast the client's losses fell from the round before last to the last (Liu et al. 2019, arXiv
    1803.10704). `gradnorm`: gradients of equal size at the last shared layer, more for tasks that lag (Chen et al.
    2018, arXiv 1711.02257); needs `mixed_batches` or `same_rows`."""

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
    implementations; heads keep their own gradients); needs `mixed_batches` or `same_rows`. `pcgrad`: Yu et al. 2020,
    arXiv 2001.06782; `cagrad`: Liu et al. 2021, arXiv 2110.14048; `upgrad`: Quinton & Rey 2024, arXiv 2406.16232;
    `mgda`: Sener & Koltun 2018, arXiv 1810.04650; `aligned_mtl`: Senushkin et al. 2023, arXiv 2305.19000. Where
    gradients agree `pcgrad` is their sum, `upgrad` their mean, `cagrad` 1 + `cagrad_c` times the mean; `mgda` is the
    shortest weighted mean, and `aligned_mtl` scales all directions to the weakest, which is far less where gradients
    nearly agree."""

    cagrad_c: float = Field(default=0.5, ge=0, lt=1, allow_inf_nan=False)
    """How far `cagrad` may stray from the mean gradient, as a share of its size; 0 is the mean."""

    length_buckets: bool = True
    """Put examples of similar length into one batch, so that little padding is computed."""

    compact_vocabulary: bool = True
    """Train only those embedding rows that the round's batches touch. The result is that of the whole table (to
    rounding in the gradient's norm), in less time and memory. Tables stay whole where that would not be so (weight
    decay on embeddings, SCAFFOLD, encoders that use token ids for more than looking them up), where a client keeps
    its own, with pairs that are read separately, and with `compile`."""

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
    def _first_of_a_pair_unless_told(cls, data: Any) -> Any:  # noqa: ANN401  # pydantic hands over raw input
        if not isinstance(data, dict):
            return data
        defaults = zip(EXCLUSIVE, (1.0, 0.1), strict=True)
        missing = {first: value for (first, other), value in defaults if data.get(first) is data.get(other) is None}
        return {**data, **missing}

    @field_validator("unfreeze")
    @classmethod
    def _in_order(cls, openings: tuple[Opening, ...]) -> tuple[Opening, ...]:
        epochs = [opening.epoch for opening in openings]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"the entries' epoch must ascend, each of them once: {epochs}")
        if epochs and epochs[0] != 0:
            raise ValueError(f"the first entry must be of epoch 0, not {epochs[0]}: before it nothing would be open")
        return openings

    @model_validator(mode="after")
    def _no_contradiction(self) -> TrainSettings:
        for first, other in EXCLUSIVE:
            if getattr(self, first) is not None and getattr(self, other) is not None:
                raise ValueError(
                    f"{first} ({getattr(self, first)}) and {other} ({getattr(self, other)}) exclude each other: "
                    "set one of them to null"
                )
        if self.unfreeze and self.local_epochs is not None and self.unfreeze[-1].epoch >= self.local_epochs:
            raise ValueError(
                f"unfreeze: epoch {self.unfreeze[-1].epoch:g} is not reached in a round of {self.local_epochs:g} "
                "epochs (local_epochs)"
            )
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError(f"momentum ({self.momentum}) belongs to optimizer 'sgd'; 'adamw' has its own")
        if self.loss_weights and self.loss_weighting != "fixed":
            raise ValueError(
                f"loss_weights {dict(self.loss_weights)} are for loss_weighting 'fixed'; "
                f"{self.loss_weighting!r} finds its own: leave loss_weights out"
            )
        if self.compile and self.mixed_batches:
            raise ValueError(
                "compile has no use with mixed_batches, whose joined passes differ each time: set one of them false"
            )
        if self.same_rows and self.mixed_batches:
            raise ValueError(
                "same_rows and mixed_batches exclude each other: a step has the same rows for all tasks, or rows of "
                "each task's own"
            )
        if self.same_rows and self.task_sampling != "proportional":
            raise ValueError(
                f"task_sampling {self.task_sampling!r} has no use with same_rows, where every step holds all tasks"
            )
        if not self.mixed_batches and not self.same_rows:
            together = {"loss_weighting": self.loss_weighting == "gradnorm", "surgery": self.surgery != "none"}
            for key in (key for key, needed in together.items() if needed):
                raise ValueError(
                    f"{key} {getattr(self, key)!r} compares gradients of several tasks in one step: "
                    "set mixed_batches: true, or same_rows: true where all tasks have the same rows"
                )
        return self


def epoch_steps(num_examples: int, batch_size: int) -> int:
    """Batches in one pass over `num_examples`, the last one possibly smaller."""
    return math.ceil(num_examples / batch_size)


def steps_of_epoch(settings: TrainSettings, num_examples: Mapping[str, int]) -> int:
    """Optimiser steps in one pass over all of a client's tasks.

    Args:
        settings: the batch size, and whether a step holds several tasks.
        num_examples: task to the number of the client's training examples; at least one task.
    """
    if shares_rows(settings, num_examples):
        return epoch_steps(max(num_examples.values()), settings.batch_size)
    if mixes(settings, num_examples):
        return epoch_steps(sum(num_examples.values()), settings.batch_size)
    return sum(epoch_steps(count, settings.batch_size) for count in num_examples.values())


def round_steps(settings: TrainSettings, num_examples: Mapping[str, int]) -> int:
    """Optimiser steps that a client takes in one round, over all its tasks; with `max_seconds` the most it takes.

    Args:
        settings: how to train.
        num_examples: task to the number of the client's training examples; at least one task.
    """
    if settings.local_steps is not None:
        return settings.local_steps
    if mixes(settings, num_examples):
        return epoch_steps(mixed_examples(settings, num_examples), settings.batch_size)
    return _of_epochs(settings, steps_of_epoch(settings, num_examples))


def steps_until(settings: TrainSettings, num_examples: Mapping[str, int], epochs: int) -> int:
    """Optimiser steps after which this many whole epochs of a round are done, however long the round is.

    Where batches are mixed the step that ends one epoch may begin the next.

    Args:
        settings: how to train.
        num_examples: task to the number of the client's training examples; at least one task.
        epochs: at least 1.
    """
    if mixes(settings, num_examples):
        return epoch_steps(epochs * sum(num_examples.values()), settings.batch_size)
    return epochs * steps_of_epoch(settings, num_examples)


def mixes(settings: TrainSettings, tasks: Collection[str]) -> bool:
    """Whether steps hold rows of several tasks. A client of one task trains as it would without `mixed_batches`."""
    return settings.mixed_batches and len(tasks) > 1


def shares_rows(settings: TrainSettings, tasks: Collection[str]) -> bool:
    """Whether a step's rows are those of all tasks. A client of one task trains as it would without `same_rows`."""
    return settings.same_rows and len(tasks) > 1


def holds_several(settings: TrainSettings, tasks: Collection[str]) -> bool:
    """Whether one step counts for several tasks."""
    return mixes(settings, tasks) or shares_rows(settings, tasks)


def mixed_examples(settings: TrainSettings, num_examples: Mapping[str, int]) -> int:
    """Examples of one round of mixed batches, over all tasks; arguments as for `round_steps`."""
    if settings.local_steps is not None:
        return settings.local_steps * settings.batch_size
    return _of_epochs(settings, sum(num_examples.values()))


def _of_epochs(settings: TrainSettings, one_epoch: int) -> int:
    if settings.local_epochs is None:
        raise AssertionError("TrainSettings holds local_epochs or local_steps")
    # Rounded up so that a small client always takes a step; 1e-9 keeps 0.07 * 100 from becoming 8.
    return max(1, math.ceil(settings.local_epochs * one_epoch - 1e-9))


def learning_rate_factor(settings: TrainSettings, position: Position, step: int, steps: int) -> float:
    """Learning rate of one step as a share of the peak, in (0, 1].

    The run has ``T = target_rounds * steps`` steps for this client and the step in hand is number
    ``g = (round - 1) * steps + step``. In the first ``w`` steps (``warmup * T``, or `warmup_steps`) the factor is
    ``(g + 1) / w``, at most 1, so the first step already learns. Then the share ``left = (T - g) / (T - w)`` of the
    rest is still to come, the step in hand included, so the last one still learns: the factor is ``left`` for `linear`
    and ``(1 - cos(pi * left)) / 2`` for `cosine` (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts).

    Args:
        settings: warm-up and schedule.
        position: where in the run the round stands.
        step: the step within the round, from 0.
        steps: the steps that are planned for each round, whatever `max_seconds` leaves of them.
    """
    total = position.target_rounds * steps
    done = (position.round - 1) * steps + step
    warmup: float = (settings.warmup or 0.0) * total if settings.warmup_steps is None else settings.warmup_steps
    if done < warmup:
        return min(1.0, (done + 1) / warmup)
    left = (total - done) / (total - warmup)
    match settings.schedule:
        case "constant":
            return 1.0
        case "linear":
            return left
        case "cosine":
            return math.sin(math.pi / 2 * left) ** 2  # the same, and never rounded to 0
