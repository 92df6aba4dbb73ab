"""Low-rank adapters on the linear layers of an encoder, through peft.

LoRA (Hu et al. 2021, arXiv 2106.09685): a layer ``W x`` becomes ``W x + (alpha / rank) B A x`` with W frozen, A of
shape (rank, inputs) and B of shape (outputs, rank). Adapted layers keep W as ``<layer>.base_layer.weight`` and have A
and B as ``<layer>.lora_A.default.weight`` and ``<layer>.lora_B.default.weight``, which are peft's names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import Tensor, nn

from common.errors import ConfigError, ProtocolError
from common.families.config import LoraSettings
from common.seeds import derive_seed
from common.strict_model import StrictModel

POOLER: Final = "pooler."
_BASE: Final = ".base_layer."
_A: Final = ".lora_A.default.weight"
_B: Final = ".lora_B.default.weight"


class LoraSpec(StrictModel):
    """Adapters, complete: what travels in a family's description."""

    rank: int
    """Rows of A and columns of B."""
    alpha: int
    """The product of B and A is multiplied by ``alpha / rank``."""
    dropout: float
    """Probability of dropping a value of an adapter's input."""
    targets: tuple[str, ...]
    """The adapted layers: their full names in the encoder."""
    train_pooler: bool
    """Whether the encoder's pooler is trained, or frozen with the rest."""


def lora_spec(settings: LoraSettings, encoder: nn.Module, model_type: str) -> LoraSpec:
    """Find the layers that the configuration means.

    Args:
        settings: the `model.lora` section.
        encoder: without adapters; may be on the meta device.
        model_type: its architecture, for peft's default targets.

    Raises:
        ConfigError: peft is not installed, has no default for this architecture, or a target is no linear layer.
    """
    check_peft_is_installed()
    linear = [n for n, m in encoder.named_modules() if isinstance(m, nn.Linear) and not n.startswith(POOLER)]
    kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
    wanted = settings.targets or _default_targets(model_type)
    if not wanted:
        raise ConfigError(
            f"model.lora.targets: peft has no default for {model_type!r}; name some of its linear layers: {kinds}"
        )
    chosen: set[str] = set()
    for target in wanted:
        found = {n for n in linear if n == target or n.endswith(f".{target}") or fnmatchcase(n, target)}
        if not found:
            raise ConfigError(
                f"model.lora.targets: {target!r} is no linear layer of this encoder; they are named {kinds}, "
                f"in full such as {linear[0]}"
            )
        chosen |= found
    return LoraSpec(
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=tuple(name for name in linear if name in chosen),
        train_pooler=settings.train_pooler,
    )


def check_peft_is_installed() -> None:
    """Raise `ConfigError` where it is not; needs no import of peft, which takes a second or two."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "model.lora needs the package peft, on the server and on every client: pip install 'fedmtl[lora]', or "
            "pip install peft (or leave model.lora out of the server's configuration)"
        )


def _default_targets(model_type: str) -> tuple[str, ...]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    return tuple(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ()))


def add_adapters(encoder: nn.Module, spec: LoraSpec) -> None:
    """Put adapters into an encoder, in place; on the device of its layers, values arbitrary.

    Raises:
        ConfigError: peft is not installed.
        ProtocolError: (code ``bad_description``) a target is no layer that peft can adapt.
    """
    check_peft_is_installed()
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=list(spec.targets), bias="none"
    )
    try:
        inject_adapter_in_model(config, encoder)
    except ValueError as error:
        raise ProtocolError("bad_description", f"peft can't add these adapters: {error}") from error
    adapted = {name.removesuffix(_A) for name, _ in encoder.named_parameters() if name.endswith(_A)}
    if adapted != set(spec.targets):
        raise ProtocolError(
            "bad_description", f"peft adapts other layers than described: {sorted(adapted ^ set(spec.targets))[:4]}"
        )


def adapted_name(name: str, spec: LoraSpec) -> str:
    """The name that a tensor of the plain encoder has once adapters are in."""
    layer, _, leaf = name.rpartition(".")
    return f"{layer}{_BASE}{leaf}" if layer in spec.targets else name


def initial_adapter_value(name: str, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """First value of one adapter tensor: B is zero, so that training starts from the encoder as it was; A is uniform
    in +-1/sqrt(inputs), as peft draws it, from (seed, name) alone."""
    if name.endswith(_B):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
    bound: float = shape[-1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def merged(values: Mapping[str, Tensor], spec: LoraSpec, prefix: str) -> dict[str, Tensor]:
    """The tensors of the plain model that computes the same: ``W + (alpha / rank) B A`` under W's plain name.

    Args:
        values: of the model with adapters, by name; left as they are.
        spec: its adapters.
        prefix: what stands before the encoder's names, ``encoder.``.

    Returns:
        name to tensor of the same dtype; products are summed in float64.
    """
    layers = {f"{prefix}{target}" for target in spec.targets}
    plain: dict[str, Tensor] = {}
    for name, value in values.items():
        layer, _, leaf = name.partition(_BASE)
        if layer in layers and leaf == "weight":
            change = values[layer + _B].double() @ values[layer + _A].double()
            value = (value.double() + spec.alpha / spec.rank * change).to(value.dtype)
        if not name.endswith((_A, _B)):
            plain[f"{layer}.{leaf}" if layer in layers else name] = value
    return plain
