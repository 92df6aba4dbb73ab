"""A text classifier from a fedmtl federation: a Hugging Face encoder, a pooling, perhaps experts, and a head.

This file is copied as `modeling_fedmtl.py` into exports whose pooling, experts or head no class of transformers
has. It needs torch and transformers only, and loads with `trust_remote_code=True`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class FedmtlConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Encoder configuration, pooling, experts (none: `experts` is 0) and head."""

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
        separate_pairs: bool = False,
        score_range: tuple[float, float] = (0.0, 1.0),
        experts: int = 0,
        expert_widths: Sequence[int] = (),
        expert_dropout: float = 0.0,
        gate_bias: bool = False,
        gate_top_k: int | None = None,
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
        self.separate_pairs = separate_pairs
        self.score_range = score_range
        self.experts = experts
        self.expert_widths = list(expert_widths)
        self.expert_dropout = expert_dropout
        self.gate_bias = gate_bias
        self.gate_top_k = gate_top_k
        super().__init__(**kwargs)


class _Head(nn.Module):
    """linear: Dropout-Linear; mlp: Linear-ReLU-Dropout-Linear."""

    def __init__(self, input_size: int, config: FedmtlConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_size, config.head_hidden_size or input_size) if config.head == "mlp" else None
        self.dropout = nn.Dropout(config.head_dropout)
        self.output = nn.Linear(self.hidden.out_features if self.hidden else input_size, config.num_labels or 1)

    def forward(self, vectors: Tensor) -> Tensor:
        if vectors.dim() == 3:
            u, v = vectors.unbind(1)
            vectors = torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
        if self.hidden is not None:
            vectors = torch.relu(self.hidden(vectors))
        logits: Tensor = self.output(self.dropout(vectors))
        return logits


class _Expert(nn.Module):
    """Linear-ReLU-Dropout layers."""

    def __init__(self, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        for layer in self.layers:
            vectors = self.dropout(torch.relu(layer(vectors)))
        return vectors


class _Mixture(nn.Module):
    """Experts, summed with the softmax of a linear gate: (N, H) to (N, expert_widths[-1]).

    With `gate_top_k` only so many experts of each row count, and the softmax is over them; a single one is multiplied
    by its weight among all.
    """

    def __init__(self, input_size: int, config: FedmtlConfig) -> None:
        super().__init__()
        sizes = [input_size, *config.expert_widths]
        self.experts = nn.ModuleList(_Expert(sizes, config.expert_dropout) for _ in range(config.experts))
        self.gate = nn.Linear(input_size, config.experts, bias=config.gate_bias)
        self.chosen = min(config.gate_top_k or config.experts, config.experts)

    def forward(self, vectors: Tensor) -> Tensor:
        logits = self.gate(vectors)
        left_out = torch.ones_like(logits).scatter(-1, logits.topk(self.chosen, dim=-1).indices, 0.0) > 0
        if self.chosen == 1:
            weights = torch.softmax(logits, dim=-1).masked_fill(left_out, 0.0)
        else:
            weights = torch.softmax(logits.masked_fill(left_out, -torch.inf), dim=-1)
        outputs = torch.stack([expert(vectors) for expert in self.experts], dim=-2)
        return (weights.unsqueeze(-1) * outputs).sum(-2)


class _Cosine(nn.Module):
    """The cosine of two vectors on the scale of the labels."""

    def __init__(self, config: FedmtlConfig) -> None:
        super().__init__()
        self.lowest, self.highest = config.score_range

    def forward(self, vectors: Tensor) -> Tensor:
        cosine = nn.functional.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=-1)
        return (self.lowest + (self.highest - self.lowest) * cosine).unsqueeze(-1)


class FedmtlForSequenceClassification(PreTrainedModel):
    """Logits (B, C), or (B, 1) for a regression.

    With `config.separate_pairs` the two texts of a pair are read one by one: inputs are (B, 2, L), which `pair_inputs`
    makes.
    """

    config_class = FedmtlConfig
    base_model_prefix = "encoder"

    def __init__(self, config: FedmtlConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        settings = dict(config.encoder_config)
        encoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        pooler = {"add_pooling_layer": config.pooler} if config.encoder_has_pooler else {}
        self.encoder = AutoModel.from_config(encoder_config, dtype=torch.float32, **pooler)  # type: ignore[no-untyped-call]
        width = encoder_config.hidden_size
        self.mixture = None
        if config.experts:
            self.mixture, width = _Mixture(width, config), config.expert_widths[-1]
        width *= 4 if config.separate_pairs else 1
        self.head = _Cosine(config) if config.head == "cosine" else _Head(width, config)
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
        if self.config.separate_pairs and input_ids.dim() != 3:
            raise ValueError(
                f"this model reads the two texts of a pair one by one: input_ids are (B, 2, L), not "
                f"{tuple(input_ids.shape)}; make them with model.pair_inputs(tokenizer, texts, other_texts)"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if token_type_ids is not None and self.config.token_type_ids:
            inputs["token_type_ids"] = token_type_ids
        vectors = self._vectors({name: tensor.flatten(0, -2) for name, tensor in inputs.items()})
        if self.mixture is not None:
            vectors = self.mixture(vectors)
        logits = self.head(vectors.view(*input_ids.shape[:-1], -1))
        loss = None
        if labels is not None:
            if self.config.problem_type == "regression":
                loss = nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(-1))
            else:
                loss = nn.functional.cross_entropy(logits, labels.view(-1))
        return SequenceClassifierOutput(loss=loss, logits=logits)

    @staticmethod
    def pair_inputs(tokenizer: Any, texts: Sequence[str], other_texts: Sequence[str]) -> dict[str, Tensor]:  # noqa: ANN401  # any tokenizer of transformers
        """The inputs of B pairs for a model that reads their texts one by one: (B, 2, L) each."""
        flat = [text for pair in zip(texts, other_texts, strict=True) for text in pair]
        batch = tokenizer(flat, padding=True, truncation=True, return_tensors="pt")
        return {name: tensor.view(len(texts), 2, -1) for name, tensor in batch.items()}

    def _vectors(self, inputs: dict[str, Tensor]) -> Tensor:
        """(N, L) inputs to (N, H); padding never counts."""
        if self.config.pooler:
            pooled: Tensor = self.encoder(**inputs).pooler_output
            return pooled
        mask, pooling = inputs["attention_mask"], self.config.pooling
        outputs = self.encoder(**inputs, output_hidden_states=pooling == "first_last")
        tokens: Tensor = outputs.last_hidden_state
        if pooling == "first_last":
            # The first transformer layer's output, not the embeddings'.
            tokens = (outputs.hidden_states[1] + outputs.hidden_states[-1]) / 2
        if pooling in ("mean", "first_last"):
            weights = mask.to(tokens.dtype).unsqueeze(-1)
            return (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        if pooling == "max":
            return tokens.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(tokens.dtype).min).amax(dim=1)
        return tokens[:, 0]
