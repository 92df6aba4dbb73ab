"""The module of the `transformer` family, and the description that both ends build it from."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig

from common.errors import ConfigError, ProtocolError
from common.families.base import MultiTaskModel
from common.families.bert_forward import bert_forward, written_out
from common.families.expert_config import PooledExpertsConfig
from common.families.heads import HeadSpec, build_heads, pair_features
from common.families.lora import LoraSpec, add_adapters
from common.families.pooling import Pooling, first_last_average, pool
from common.selectors import GATE, is_adapter
from common.strict_model import StrictModel

FAMILY: Final = "transformer"

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|albert_layer_groups|h|blocks?)\.(\d+)\.")


class TransformerDescription(StrictModel):
    """What a client is told; a field it does not know could change the model, so that is refused."""

    format: Literal[1] = 1
    family: Literal["transformer"] = FAMILY
    label: str
    """The encoder in words."""
    encoder: dict[str, Any]
    """The encoder's transformers configuration."""
    pooling: Pooling
    pooler: bool
    """Whether the encoder's own pooler is built and used."""
    max_length: int
    token_type_ids: bool
    """Whether the encoder tells the two texts of a pair apart by type ids."""
    pad_id: int
    heads: dict[str, HeadSpec]
    lora: LoraSpec | None = None
    """Adapters in the encoder, which is frozen then."""
    experts: PooledExpertsConfig | None = None
    """Experts that read the pooled vector; heads read their mixture."""


class TransformerModel(MultiTaskModel):
    """Encoder, pooling, heads."""

    def __init__(self, encoder: nn.Module, description: TransformerDescription, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self._pooling = description.pooling
        self._pooler = description.pooler
        self._written_out = written_out(encoder)
        self._regressions = {task for task, spec in description.heads.items() if spec.regression}
        self._on_features = {
            task for task, spec in description.heads.items() if spec.separate and spec.kind != "cosine"
        }

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) or scores (B,).

        `batch` holds input_ids, attention_mask and, where the encoder takes them, token_type_ids, each (B, L), or
        (B, 2, L) for a task whose pairs are read separately.
        """
        return self._outputs(task, self._vectors(batch))

    def forward_parts(self, parts: Mapping[str, slice], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `MultiTaskModel.forward_parts`: one pass through the encoder, then each task's head on its rows."""
        vectors = self._vectors(batch)
        return {task: self._outputs(task, vectors[rows]) for task, rows in parts.items()}

    def _vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, L) inputs to (B, H), or (B, 2, L) to (B, 2, H): both texts of every pair in the same pass."""
        inputs = {name: tensor.flatten(0, -2) for name, tensor in batch.items()}
        pooled = self._pooled(inputs)
        return pooled.view(*batch["input_ids"].shape[:-1], -1)

    def _pooled(self, inputs: dict[str, Tensor]) -> Tensor:
        """(N, L) inputs to (N, H)."""
        if self._pooling == "first_last":
            tokens = first_last_average(self.encoder(**inputs, output_hidden_states=True).hidden_states)
            return pool(tokens, inputs["attention_mask"], self._pooling)
        tokens, of_pooler = self._encode(inputs)
        return of_pooler if self._pooler else pool(tokens, inputs["attention_mask"], self._pooling)

    def _outputs(self, task: str, vectors: Tensor) -> Tensor:
        """(B, H) or (B, 2, H) to (B, C) or (B,)."""
        if task in self._on_features:
            vectors = pair_features(vectors[:, 0], vectors[:, 1])
        logits: Tensor = self.heads[task](vectors)
        return logits.squeeze(-1) if task in self._regressions else logits

    def _encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The last layer's token vectors (of the first token alone where only that is pooled), the pooler's output."""
        if self._written_out:
            tokens, of_pooler = bert_forward(self.encoder, batch, first_only=self._pooling == "cls")
            return tokens, tokens if of_pooler is None else of_pooler
        outputs = self.encoder(**batch)
        return outputs.last_hidden_state, outputs.pooler_output if self._pooler else outputs.last_hidden_state


def assemble(description: TransformerDescription, tasks: Sequence[str]) -> TransformerModel:
    """The model with these tasks' heads and gates, on the current default device, values drawn from torch's stream."""
    config = encoder_config(description)
    encoder = new_encoder(config, pooler=description.pooler)
    if description.lora is not None:
        add_adapters(encoder, description.lora)
    experts = description.experts
    width = config.hidden_size if experts is None else experts.hidden[-1]
    heads = build_heads({task: description.heads[task] for task in tasks}, width)
    if experts is None:
        return TransformerModel(encoder, description, heads)
    from common.families.pooled_experts import PooledExpertsModel

    return PooledExpertsModel(encoder, description, heads, config.hidden_size)


def is_trained(description: TransformerDescription, name: str) -> bool:
    """Whether tasks train a tensor of the model: any, or with adapters only those, what stands on the encoder and maybe
    its pooler."""
    if description.lora is None or not name.startswith("encoder.") or is_adapter(name):
        return True
    return description.lora.train_pooler and group_of(name) == "pooler"


def encoder_config(description: TransformerDescription) -> PreTrainedConfig:
    """The encoder's configuration, without touching disk or network.

    Raises:
        ProtocolError: (code ``bad_description``) this version of transformers can't make sense of it.
    """
    settings = copy.deepcopy(description.encoder)
    model_type = str(settings.pop("model_type", None))
    try:
        return AutoConfig.for_model(model_type, **settings)
    except (ValueError, TypeError) as error:
        raise ProtocolError(
            "bad_description", f"transformers can't build this encoder here ({error}); use the server's version of it"
        ) from error


def takes(config: PreTrainedConfig, method: str, parameter: str) -> bool:
    """Whether a method of the encoder's class has this parameter.

    Raises:
        ConfigError: transformers has no plain model for this configuration.
    """
    found: Any = MODEL_MAPPING.get(type(config), None)
    model_class = found[0] if isinstance(found, tuple) else found
    if model_class is None:
        raise ConfigError(f"model.encoder: AutoModel has no class for {config.model_type!r}")
    return parameter in inspect.signature(getattr(model_class, method)).parameters


def pooler_argument(config: PreTrainedConfig, pooler: bool) -> dict[str, bool]:
    """What the encoder's class must be told so that a pooler is built only when it is used."""
    return {"add_pooling_layer": pooler} if takes(config, "__init__", "add_pooling_layer") else {}


def new_encoder(config: PreTrainedConfig, *, pooler: bool) -> nn.Module:
    """The encoder with values drawn from torch's stream, float32."""
    encoder = AutoModel.from_config(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        config, dtype=torch.float32, trust_remote_code=False, **pooler_argument(config, pooler)
    )
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"model.encoder: transformers gives no torch module for {config.model_type}")
    return encoder


def longest_input(encoder: nn.Module) -> int | None:
    """Tokens the position table holds; RoBERTa's positions start after the padding id. None: no table."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - reserved
    return None


def group_of(name: str) -> str:
    """The part of the model that a tensor belongs to: embeddings, layer.N, pooler, expert.N, gate, head or encoder (the
    rest)."""
    part, which, *_ = name.split(".")
    match part:
        case "heads":
            return "head"
        case "experts":
            return f"expert.{which}"
        case "gate":
            return GATE
        case _:
            pass
    if layer := _LAYER.search(name):
        return f"layer.{layer.group(1)}"
    if name.startswith("encoder.pooler."):
        return "pooler"
    return "embeddings" if "embed" in name else "encoder"
