"""The ``freezing:`` section: which slots are not trained, and from which round on others are."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from common.selectors import check_selector
from common.strict_model import StrictModel


class SlotChoice(StrictModel):
    """Some slots of the plan; in YAML a selector alone (``backbone``), or a mapping that says for which tasks.

    A parameter that is split by task (`federation.mode: per_task`) has a slot for each; `tasks` chooses among them.
    """

    match: tuple[str, ...] = Field(min_length=1)
    """One selector or several: everything, backbone, heads, head:TASK, own:TASK (all that the task alone trains),
    embeddings, pooler, norms, adapters, layers:0-9, lower, middle, upper, or a pattern of parameter names such as
    ``encoder.*.LayerNorm.*``."""
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Only slots that are held for no other tasks than these; left out: whatever tasks they are held for."""

    @model_validator(mode="before")
    @classmethod
    def _selector_alone(cls, given: Any) -> Any:  # noqa: ANN401  # pydantic hands over raw input
        return {"match": given} if isinstance(given, str) else given

    @field_validator("match", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:  # noqa: ANN401  # pydantic hands over raw input
        return (given,) if isinstance(given, str) else given

    @field_validator("match")
    @classmethod
    def _known_forms(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_selector(text) for text in given)


class StageConfig(StrictModel):
    """What is opened for training at some round."""

    from_round: int = Field(ge=1)
    """The first round in which it is trained."""
    until_round: int | None = Field(default=None, ge=1)
    """The last round in which it is trained, unless another stage has it open, too; null: it stays open."""
    open: tuple[SlotChoice, ...] = Field(min_length=1)
    """What is trained from then on, beside what earlier stages have open."""

    @field_validator("open", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:  # noqa: ANN401  # pydantic hands over raw input
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.until_round is not None and self.until_round < self.from_round:
            raise ValueError(f"until_round ({self.until_round}) is before from_round ({self.from_round})")
        return self


class GradualConfig(StrictModel):
    """Gradual unfreezing (ULMFiT, Howard & Ruder 2018, arXiv 1801.06146): the heads first, then from the top down the
    pooler with the last layer, one layer more at a time, and the embeddings last."""

    rounds_per_layer: int = Field(default=1, ge=1)
    """Rounds after which the next layer is opened."""


class FreezingConfig(StrictModel):
    """What is trained in which round. A frozen slot is not trained, keeps its value, and no delta of it travels."""

    freeze: tuple[SlotChoice, ...] = ()
    """What stays as it is in the whole run, whatever `schedule` or `gradual` say: ``[everything]`` (clients evaluate
    and send nothing), ``[backbone]``, ``[head:sst2]``, ``[embeddings, layers:0-9]``, or only what some tasks have for
    themselves: ``[{match: backbone, tasks: [sst2]}]``."""
    schedule: tuple[StageConfig, ...] = ()
    """Progressive unfreezing: ``[{from_round: 1, open: [heads]}, {from_round: 3, open: [upper]}, ...]``, or one part
    after the other: ``[{from_round: 1, until_round: 5, open: "own:income"}, {from_round: 6, open: "own:marital"}]``.
    What no stage has open is frozen. Left out: everything is open from round 1."""
    gradual: GradualConfig | None = None
    """A schedule by layers, ``{rounds_per_layer: 1}``, in place of `schedule`."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:  # noqa: ANN401  # pydantic hands over raw input
        return (given,) if isinstance(given, str) else given

    @field_validator("schedule")
    @classmethod
    def _in_order(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        rounds = [stage.from_round for stage in stages]
        if rounds != sorted(set(rounds)):
            raise ValueError(f"the stages' from_round must ascend, each of them once: {rounds}")
        if rounds and rounds[0] != 1:
            raise ValueError(f"the first stage must be from_round 1, not {rounds[0]}: before it nothing would be open")
        return stages

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.schedule and self.gradual is not None:
            raise ValueError("give schedule or gradual, not both")
        return self
