"""The settings of experts and gates, and the `model:` sections of the families of experts over tabular rows.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from common.families.tabular_config import FlexibleWidths, TabularConfig, Widths
from common.strict_model import StrictModel

#: Experts that one gate may weigh: as many as fit a client's report of it (`common.messages.GateReport`).
MOST_EXPERTS: Final = 256


class GateConfig(StrictModel):
    """How a gate weighs experts: by a softmax over all of them, or over the `top_k` of each row."""

    bias: bool = False
    """Whether a gate has a bias; the papers' have none."""

    top_k: int | None = Field(default=None, ge=1)
    """Weigh only so many experts of each row, those the gate prefers, and give the others 0. With 1 the expert's output
    is multiplied by its weight among all experts (Fedus et al. 2021, arXiv 2101.03961), since a weight of 1 would tell
    the gate nothing. Left out: all experts."""

    noise: bool = False
    """In training, choose the `top_k` after adding noise of a width that the gate learns for each expert (Shazeer et
    al. 2017, arXiv 1701.06538), so that experts are tried that are not preferred yet."""

    capacity: float | None = Field(default=None, gt=0)
    """In training, an expert takes at most `capacity * rows * top_k / number` of a gate's rows, rounded up; what is
    beyond goes without it, the last rows of the batch first. In evaluation every row gets its experts, so that no
    prediction depends on other rows. Left out: no limit."""

    balance: float = Field(default=0.0, ge=0)
    """Weight of a penalty for experts that are used unequally, added to the loss: the squared coefficient of variation
    of their total weights (Shazeer et al. 2017), or with `top_k: 1` the number of experts times the sum of share of
    rows times mean weight (Fedus et al. 2021), which is 1 at balance."""

    @model_validator(mode="after")
    def _sparse_options_are_for_sparse_gates(self) -> Self:
        for name, given in (("noise", self.noise), ("capacity", self.capacity is not None)):
            if given and self.top_k is None:
                raise ValueError(f"{name} is for gates that choose experts; set top_k or leave {name} out")
        return self

    def check_number(self, experts: int) -> None:
        """Refuse a gate over fewer experts than it chooses, or over more than can be reported."""
        if experts > MOST_EXPERTS:
            raise ValueError(f"there is a gate over {experts} experts; allowed are {MOST_EXPERTS}")
        if self.top_k is not None and self.top_k > experts:
            raise ValueError(f"gate.top_k is {self.top_k}, and there is a gate over only {experts} experts")


class ExpertsConfig(StrictModel):
    """Experts of equal widths, which read the same input."""

    number: int = Field(default=8, ge=1)
    """How many."""

    hidden: FlexibleWidths = Field(default=[16])
    """Widths of the layers of each."""


class OwnExpertsConfig(StrictModel):
    """Experts that each task has of its own."""

    number: int = Field(default=2, ge=0)
    """How many each task has; with 0 everywhere, `ple` of one level is `mmoe`."""

    hidden: FlexibleWidths = Field(default=[16])
    """Widths of the layers of each; the last as that of the shared ones."""


class PooledExpertsConfig(ExpertsConfig):
    """Experts between an encoder and the heads (experts and gates: Ma et al., KDD 2018)."""

    kind: Literal["omoe", "mmoe"] = "mmoe"
    """`omoe`: one gate for all tasks; `mmoe`: a gate for each task."""

    number: int = Field(default=4, ge=1)
    """How many."""

    hidden: Widths = Field(default=[64])
    """Widths of the layers of each."""

    gate: GateConfig = GateConfig()
    """How gates weigh them."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after every layer of the experts."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        self.gate.check_number(self.number)
        return self


class MixtureConfig(TabularConfig):
    """Experts that all tasks share, and gates."""

    experts: ExpertsConfig = ExpertsConfig()
    """The experts."""

    gate: GateConfig = GateConfig()
    """How gates weigh them."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        self.gate.check_number(self.experts.number)
        return self


class OMoEConfig(MixtureConfig):
    """A mixture of experts with one gate, below a tower per task (Ma et al., KDD 2018)."""

    family: Literal["omoe"]


class MMoEConfig(MixtureConfig):
    """A mixture of experts with a gate and a tower per task (Ma et al., KDD 2018)."""

    family: Literal["mmoe"]


class LevelConfig(StrictModel):
    """One level of `ple`."""

    shared: ExpertsConfig = ExpertsConfig(number=4)
    """Experts that all tasks share."""

    own: OwnExpertsConfig = OwnExpertsConfig()
    """Experts of each task's own."""

    @model_validator(mode="after")
    def _experts_can_be_summed(self) -> Self:
        if self.own.number and self.shared.hidden[-1] != self.own.hidden[-1]:
            raise ValueError(
                f"a gate sums experts of equal widths; the last of shared.hidden is {self.shared.hidden[-1]}, of "
                f"own.hidden {self.own.hidden[-1]}"
            )
        return self


class PLEConfig(TabularConfig):
    """Progressive layered extraction: levels of shared experts and of experts of each task's own (Tang et al., RecSys
    2020). With one level it is that paper's customised gate control (CGC)."""

    family: Literal["ple"]

    levels: Annotated[list[LevelConfig], Field(min_length=1)] = Field(default=[LevelConfig()])
    """From the inputs up. At every level but the last, the experts of each task's own serve the other tasks, too: the
    shared experts of the next level read a mixture of all."""

    gate: GateConfig = GateConfig()
    """How gates weigh experts."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        for level in self.levels:
            self.gate.check_number(level.shared.number + level.own.number)
        return self
