"""How fast each parameter learns, and how it decays: by its place in the model and what the settings say about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from common.blueprint import ParameterSpec
from common.selectors import (
    EMBEDDINGS,
    HEAD,
    POOLER,
    STITCH,
    is_mixture,
    is_norm,
    layer_count,
    layer_of,
    select_present,
)
from common.training import TrainSettings


@dataclass(frozen=True, slots=True)
class ParameterRate:
    """One parameter's share in a step.

    Attributes:
        multiplier: of the step's learning rate.
        weight_decay: decoupled decay with `adamw`, L2 penalty with `sgd`.
    """

    multiplier: float
    weight_decay: float


def parameter_rates(specs: Iterable[ParameterSpec], settings: TrainSettings) -> Mapping[str, ParameterRate]:
    """The rates of every parameter.

    The multiplier is ``layer_decay ** depth``, and for heads ``head_learning_rate``, unless an entry of `groups` says
    another. Layer-wise decay follows discriminative fine-tuning (ULMFiT, Howard & Ruder 2018, arXiv 1801.06146) with
    the factor per layer as in ELECTRA (Clark et al. 2020, arXiv 2003.10555), whose code leaves out one more step
    between the head and the last layer.

    Args:
        specs: of all layers of the encoder that a client holds, as depth is counted from the top.
        settings: how to train.

    Returns:
        parameter name to its rates.
    """
    known = {spec.name: spec for spec in specs}
    layers = layer_count(known.values())
    rates = {
        name: ParameterRate(
            (settings.head_learning_rate if spec.group == HEAD else 1.0) * settings.layer_decay ** depth(spec, layers),
            settings.weight_decay if can_decay(spec) and spec.group != EMBEDDINGS else 0.0,
        )
        for name, spec in known.items()
    }
    for entry in settings.groups:
        for name in select_present(entry.match, known.values()):
            if entry.learning_rate is not None:
                rates[name] = replace(rates[name], multiplier=entry.learning_rate)
            if entry.weight_decay is not None and can_decay(known[name]):
                rates[name] = replace(rates[name], weight_decay=entry.weight_decay)
    return rates


def depth(spec: ParameterSpec, layers: int) -> int:
    """Steps down from the top of the model: 0 for heads, experts, gates and pooler, 1 for the last layer, and one below
    the first layer for the embeddings and what else an encoder has outside its layers (relative positions, for one)."""
    if spec.group in (HEAD, POOLER) or is_mixture(spec.group):
        return 0
    layer = layer_of(spec.group)
    return 1 + layers if layer is None else layers - layer


def can_decay(spec: ParameterSpec) -> bool:
    """Whether decay can apply: biases, the weights of norms and mixtures of columns are left as they are."""
    return len(spec.shape) > 1 and spec.group != STITCH and not is_norm(spec.name)
