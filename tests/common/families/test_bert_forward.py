"""The written-out forward pass against transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from common.families.bert_forward import bert_forward, written_out

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "num_hidden_layers": 3,
}


def bert(**settings: Any) -> nn.Module:  # noqa: ANN401
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: nn.Module = AutoModel.from_config(AutoConfig.for_model("bert", **{**SIZES, **settings}))  # type: ignore[no-untyped-call]
        for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide mistakes
            nn.init.normal_(parameter, std=0.3)
    return model


def batch(*, padding: bool, pairs: bool) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 60, (6, 9), generator=drawn)
    lengths = torch.randint(2, 9, (6, 1), generator=drawn) if padding else torch.full((6, 1), 9)
    mask = (torch.arange(9) < lengths).long()
    types = ((torch.arange(9) >= lengths // 2) & (mask == 1)).long() if pairs else torch.zeros_like(mask)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(9)
    model.zero_grad(set_to_none=True)
    torch.autograd.backward((output * torch.randn(output.shape, generator=drawn)).sum())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def require_same_gradients(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, gradient in wanted.items():
        if name.endswith("attention.self.key.bias"):
            assert gradient.abs().max() < 1e-3  # it is zero, but for rounding: the softmax does not see it
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_all_tokens_are_those_of_transformers_with_their_gradients(training: bool, padding: bool, pairs: bool) -> None:
    model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(training)
    inputs = batch(padding=padding, pairs=pairs)
    real = inputs["attention_mask"].bool()
    wanted = model(**inputs).last_hidden_state[real]
    wanted_gradients = gradients(model, wanted)
    tokens, _ = bert_forward(model, inputs, first_only=False)
    torch.testing.assert_close(tokens[real], wanted, rtol=1e-5, atol=1e-5)
    require_same_gradients(gradients(model, tokens[real]), wanted_gradients)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("pooler", [False, True])
def test_the_first_token_alone_is_that_of_transformers_with_its_gradients(
    pooler: bool, padding: bool, pairs: bool
) -> None:
    model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    if not pooler:
        del model.pooler
        model.register_module("pooler", None)
    inputs = batch(padding=padding, pairs=pairs)
    plain = model(**inputs)
    wanted = plain.pooler_output if pooler else plain.last_hidden_state[:, 0]
    wanted_gradients = gradients(model, wanted)
    tokens, of_pooler = bert_forward(model, inputs, first_only=True)
    assert tokens.shape == (6, 1, 32)
    found = tokens[:, 0] if of_pooler is None else of_pooler
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    require_same_gradients(gradients(model, found), wanted_gradients)


def test_an_encoder_without_layers_is_its_embeddings() -> None:
    model = bert(num_hidden_layers=0).eval()
    inputs = batch(padding=True, pairs=True)
    tokens, _ = bert_forward(model, inputs, first_only=False)
    torch.testing.assert_close(tokens, model(**inputs).last_hidden_state)


@pytest.mark.parametrize("first_only", [False, True])
def test_attention_weights_are_dropped_before_values_are_summed(first_only: bool) -> None:
    """A module that drops nothing but tells what it saw, and then one that drops one token in all places."""
    model: Any = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5, num_hidden_layers=1).train()
    inputs = batch(padding=True, pairs=False)

    class DropFifth(nn.Dropout):
        def forward(self, weights: Tensor) -> Tensor:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
            return torch.cat([weights[..., :5], torch.zeros_like(weights[..., 5:6]), weights[..., 6:]], dim=-1)

    own = model.encoder.layer[0].attention.self
    own.dropout = DropFifth(0.5).train()
    tokens, _ = bert_forward(model, inputs, first_only=first_only)
    hidden = model.embeddings(inputs["input_ids"], inputs["token_type_ids"])

    def heads(vectors: Tensor) -> Tensor:
        return vectors.view(6, 9, 4, 8).transpose(1, 2)

    scores = heads(own.query(hidden)) @ heads(own.key(hidden)).transpose(2, 3) * 8**-0.5
    weights = scores.masked_fill(inputs["attention_mask"][:, None, None] == 0, -torch.inf).softmax(-1)
    seen = (own.dropout(weights) @ heads(own.value(hidden))).transpose(1, 2).reshape(6, 9, 32)
    layer = model.encoder.layer[0]
    attended = layer.attention.output(seen, hidden)
    wanted = layer.output(layer.intermediate(attended), attended)
    torch.testing.assert_close(tokens, wanted[:, :1] if first_only else wanted, rtol=1e-5, atol=1e-5)


def test_what_is_no_plain_bert_is_left_to_transformers() -> None:
    assert written_out(bert())
    assert not written_out(bert(is_decoder=True))
    assert not written_out(bert(chunk_size_feed_forward=4))
    assert not written_out(bert(type_vocab_size=3))
    settings = AutoConfig.for_model("roberta", **SIZES)
    assert not written_out(AutoModel.from_config(settings))  # type: ignore[no-untyped-call]
