"""The losses that a task may name, as configuration; `client.loss` computes them.

In YAML ``loss: huber`` is short for ``loss: {kind: huber}``. Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from common.strict_model import StrictModel

#: Class name to weight; a class that is left out weighs 1.
ClassWeights = dict[str, Annotated[float, Field(gt=0)]]


class CrossEntropyLoss(StrictModel):
    """Cross-entropy of a classification."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    class_weights: ClassWeights = Field(default_factory=dict)
    """Weight of each class's examples, by class name; a class that is left out weighs 1."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2015, arXiv 1512.00567)."""


class FocalLoss(StrictModel):
    """Cross-entropy with easy examples turned down: ``-(1 - p)^gamma log p`` (Lin et al. 2017, arXiv 1708.02002)."""

    kind: Literal["focal"] = "focal"

    gamma: float = Field(default=2.0, ge=0)
    """How much; at 0 it is cross-entropy. The paper's best is 2."""

    class_weights: ClassWeights = Field(default_factory=dict)
    """The paper's alpha, by class name; a class that is left out weighs 1."""


class MseLoss(StrictModel):
    """Squared error of a regression, on the labels as they are."""

    kind: Literal["mse"] = "mse"


class HuberLoss(StrictModel):
    """Squared error near the label, absolute error far from it (Huber 1964): ``e^2 / 2`` up to `delta`."""

    kind: Literal["huber"] = "huber"

    delta: float = Field(default=1.0, gt=0)
    """Where the one becomes the other, in units of the labels."""


class CosineLoss(StrictModel):
    """Squared error between the cosine of a pair's two vectors and the label, which `label_range` brings to [0, 1].

    The regression objective of Reimers & Gurevych 2019 (arXiv 1908.10084); for a task with a `cosine` head.
    """

    kind: Literal["cosine"] = "cosine"


#: Tag to model. Tags are in brackets so that error messages can leave them out of the key path.
LOSSES: Final[Mapping[str, type[StrictModel]]] = {
    "<cross_entropy>": CrossEntropyLoss,
    "<focal>": FocalLoss,
    "<mse>": MseLoss,
    "<huber>": HuberLoss,
    "<cosine>": CosineLoss,
}
#: Kind of task to the losses that fit it; the first is the default.
LOSSES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "classification": ("cross_entropy", "focal"),
    "regression": ("mse", "huber", "cosine"),
}


def _tag(value: object) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return f"<{kind}>"


def _known(value: object) -> object:
    """A name as a mapping; a name that is no loss's is refused."""
    entry = {"kind": value} if isinstance(value, str) else value
    if _tag(entry) not in LOSSES:
        allowed = "; ".join(f"{', '.join(names)} for a {kind}" for kind, names in LOSSES_OF.items())
        raise ValueError(f"no loss is named {_tag(entry).strip('<>')!r}: allowed are {allowed}")
    return entry


def _shortest(loss: StrictModel) -> Any:  # noqa: ANN401  # what JSON holds
    """A loss without options as its name: what it was before losses had options, which older clients read too."""
    written = loss.model_dump(mode="json", exclude_defaults=True)
    return getattr(loss, "kind") if not written else loss.model_dump(mode="json")  # noqa: B009  # of every loss


Loss = Annotated[
    Annotated[CrossEntropyLoss, Tag("<cross_entropy>")]
    | Annotated[FocalLoss, Tag("<focal>")]
    | Annotated[MseLoss, Tag("<mse>")]
    | Annotated[HuberLoss, Tag("<huber>")]
    | Annotated[CosineLoss, Tag("<cosine>")],
    Discriminator(_tag),
    BeforeValidator(_known),
    PlainSerializer(_shortest),
]
