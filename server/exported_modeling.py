"""A text classifier from a fedmtl federation: a Hugging Face encoder, a pooling and a head.

This file is copied as `modeling_fedmtl.py` into exports whose pooling or head no class of transformers
has. It needs torch and transformers only, and loads with `trust_remote_code=True`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class FedmtlConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Encoder configuration, pooling and head."""

    model_type = "fedmtl"

    def __init__(
        self,
        encoder_config: dict[str, Any] | None = None,
        pooling: str = "cls",
        pooler: bool = False,
        encoder_has_pooler: bool = False,
        token_type_ids: bool = False,
        head: str = "linear",
        head_hidden_size: int | None = None,
        head_dropout: float = 0.0,
        **kwargs: Any,  # noqa: ANN401  # transformers' own interface
    ) -> None:
        self.encoder_config = encoder_config or {"model_type": "bert"}
        self.pooling = pooling
        self.pooler = pooler
        self.encoder_has_pooler = encoder_has_pooler
        self.token_type_ids = token_type_ids
        self.head = head
        self.head_hidden_size = head_hidden_size
        self.head_dropout = head_dropout
        super().__init__(**kwargs)


class _Head(nn.Module):
    """linear: Dropout-Linear; mlp: Linear-ReLU-Dropout-Linear."""

    def __init__(self, input_size: int, config: FedmtlConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_size, config.head_hidden_size or input_size) if config.head == "mlp" else None
        self.dropout = nn.Dropout(config.head_dropout)
        self.output = nn.Linear(self.hidden.out_features if self.hidden else input_size, config.num_labels or 1)

    def forward(self, pooled: Tensor) -> Tensor:
        if self.hidden is not None:
            pooled = torch.relu(self.hidden(pooled))
        logits: Tensor = self.output(self.dropout(pooled))
        return logits


class FedmtlForSequenceClassification(PreTrainedModel):
    """Logits (B, C), or (B, 1) for a regression."""

    config_class = FedmtlConfig
    base_model_prefix = "encoder"

    def __init__(self, config: FedmtlConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        settings = dict(config.encoder_config)
        encoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        pooler = {"add_pooling_layer": config.pooler} if config.encoder_has_pooler else {}
        self.encoder = AutoModel.from_config(encoder_config, dtype=torch.float32, **pooler)  # type: ignore[no-untyped-call]
        self.head = _Head(encoder_config.hidden_size, config)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401, ARG002  # Trainer and pipelines pass more than is used
    ) -> SequenceClassifierOutput:
        """`labels`: (B,) class ids, or scores for a regression; with them the loss is computed."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if token_type_ids is not None and self.config.token_type_ids:
            inputs["token_type_ids"] = token_type_ids
        outputs = self.encoder(**inputs)
        logits = self.head(outputs.pooler_output if self.config.pooler else self._pool(outputs.last_hidden_state, mask))
        loss = None
        if labels is not None:
            if self.config.problem_type == "regression":
                loss = nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(-1))
            else:
                loss = nn.functional.cross_entropy(logits, labels.view(-1))
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, H) to (B, H); padding never counts."""
        if self.config.pooling == "mean":
            weights = mask.to(tokens.dtype).unsqueeze(-1)
            return (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        if self.config.pooling == "max":
            return tokens.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(tokens.dtype).min).amax(dim=1)
        return tokens[:, 0]
