"""The forward pass of BERT encoders written out: transformers' arithmetic without what no result depends on.

Where the first token stands for the text, the last layer's queries, attention output and feed-forward block are
computed for that token alone: nothing reads the others, and they get no gradient either; and its keys and values are
never made (`_attend_once`). With two layers that leaves out half of all products. What also goes is transformers'
bookkeeping per call, masks for batches without padding, and looking up rows of tables that are read in order.

Results are those of transformers, bit for bit or to the last few bits where sums run in another order
(``tests/common/families/test_bert_forward.py``). Every submodule is called as a module, so adapters put in its place
take part. B texts, L tokens, H hidden size, N heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def written_out(encoder: nn.Module) -> bool:
    """Whether `bert_forward` computes what this encoder does: a plain BERT with two token types."""
    from transformers import BertModel

    config: Any = getattr(encoder, "config", None)
    return (
        type(encoder) is BertModel
        and type(encoder.embeddings.token_type_embeddings)
        is type(encoder.embeddings.position_embeddings)
        is nn.Embedding
        and not config.is_decoder
        and not config.add_cross_attention
        and not config.chunk_size_feed_forward
        and config.type_vocab_size == 2
    )


def bert_forward(encoder: nn.Module, batch: Mapping[str, Tensor], *, first_only: bool) -> tuple[Tensor, Tensor | None]:
    """Token vectors and, where the encoder has a pooler, its output.

    Args:
        encoder: one that is `written_out`.
        batch: input_ids, attention_mask and perhaps token_type_ids, each (B, L).
        first_only: compute the last layer for the first token alone.

    Returns:
        (B, L, H), or (B, 1, H) with `first_only`; and (B, H) or None.
    """
    model: Any = encoder
    hidden = _embed(model.embeddings, batch)
    mask = _additive_mask(batch.get("attention_mask"), hidden)
    layers = list(model.encoder.layer)
    for layer in layers[:-1]:
        hidden = _layer(layer, hidden, hidden, mask)
    if layers:
        hidden = _layer(layers[-1], hidden[:, :1] if first_only else hidden, hidden, mask)
    return hidden, None if model.pooler is None else model.pooler(hidden)


def _embed(embeddings: Any, batch: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401  # BertEmbeddings
    words: Tensor = embeddings.word_embeddings(batch["input_ids"])
    types: Tensor = embeddings.token_type_embeddings.weight
    type_ids = batch.get("token_type_ids")
    if type_ids is None or (_may_look_at(type_ids) and not bool(type_ids.any())):
        of_type = types[0]
    else:
        of_type = torch.where(type_ids.unsqueeze(-1) == 0, types[0], types[1])
    summed = words + of_type + embeddings.position_embeddings.weight[: words.shape[1]]
    vectors: Tensor = embeddings.dropout(embeddings.LayerNorm(summed))
    return vectors


def _additive_mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """(B, 1, 1, L): 0 at real tokens and -inf at padding; None where it is known that there is none."""
    if mask is None or (_may_look_at(mask) and bool(mask.all())):
        return None
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask == 0, -torch.inf)[
        :, None, None, :
    ]


def _layer(layer: Any, reading: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ANN401  # BertLayer
    """One layer's output for the tokens `reading` (B, Q, H), which attend to all of `hidden` (B, L, H)."""
    own = layer.attention.self
    if reading.shape[1] == 1 and type(own.key) is nn.Linear and type(own.value) is nn.Linear:
        seen = _attend_once(own, reading[:, 0], hidden, mask)
    else:
        seen = _attend(own, reading, hidden, mask)
    attended = layer.attention.output(seen, reading)
    output: Tensor = layer.output(layer.intermediate(attended), attended)
    return output


def _attend(own: Any, reading: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ANN401  # BertSelfAttention
    """Scaled dot-product attention of (B, Q, H) to (B, L, H), heads joined again: (B, Q, H)."""

    def heads(vectors: Tensor) -> Tensor:
        return vectors.view(*vectors.shape[:2], own.num_attention_heads, own.attention_head_size).transpose(1, 2)

    query, key, value = heads(own.query(reading)), heads(own.key(hidden)), heads(own.value(hidden))
    p = _probability(own.dropout)
    if p == 0.0 or query.device.type != "cpu":
        added = None if mask is None else mask.to(query.dtype)
        seen = functional.scaled_dot_product_attention(query, key, value, added, dropout_p=p, scale=own.scaling)
    else:
        # torch has no fused kernel with dropout on the CPU, so its masks may as well come from the module's stream.
        scores = torch.matmul(query * own.scaling, key.transpose(-1, -2))
        seen = torch.matmul(_weights(scores, mask, own.dropout).to(value.dtype), value)
    return seen.transpose(1, 2).reshape(*reading.shape[:2], -1)


def _attend_once(own: Any, reading: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ANN401
    """Attention of one token per text, (B, H), to (B, L, H) without making keys and values: (B, 1, H).

    With one query per head it is cheaper to take the query through the key's matrix, and the weighted mean of the
    hidden vectors through the value's: ``q . (K h + k) = (K^T q) . h + q . k``, whose last term is the same for all
    tokens and leaves the softmax as it is, and ``sum_j a_j (V h_j + v) = V sum_j a_j h_j + v sum_j a_j``.
    """
    count, size = own.num_attention_heads, own.attention_head_size
    width = hidden.shape[-1]
    query = (own.query(reading) * own.scaling).view(-1, count, size).transpose(0, 1)  # (N, B, D)
    asked = torch.bmm(query, own.key.weight.view(count, size, width)).transpose(0, 1)  # (B, N, H)
    scores = torch.bmm(asked, hidden.transpose(1, 2))  # (B, N, L)
    weights = _weights(scores, None if mask is None else mask[:, 0], own.dropout)
    mixed = torch.bmm(weights.to(hidden.dtype), hidden).transpose(0, 1)  # (N, B, H)
    seen = torch.bmm(mixed, own.value.weight.view(count, size, width).transpose(1, 2)).transpose(0, 1)  # (B, N, D)
    bias: Tensor | None = own.value.bias
    if bias is not None:
        seen = seen + weights.sum(dim=-1, keepdim=True) * bias.view(count, size)
    return seen.reshape(-1, 1, width)


def _weights(scores: Tensor, mask: Tensor | None, dropout: nn.Module) -> Tensor:
    """Attention weights after dropout, from scores and what is added to them at padding."""
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    weights: Tensor = dropout(torch.softmax(scores, dim=-1))
    return weights


def _may_look_at(inputs: Tensor) -> bool:
    """A look at a GPU's memory makes the host wait for it, and one in a compiled function breaks it in two."""
    return inputs.device.type == "cpu" and not torch.compiler.is_compiling()


def _probability(dropout: nn.Module) -> float:
    return float(getattr(dropout, "p", 0.0)) if dropout.training else 0.0
