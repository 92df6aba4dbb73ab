"""Heads: order of their layers, and what their first values depend on."""

from __future__ import annotations

import torch
from torch import nn

from common.families.config import HeadConfig
from common.families.heads import HeadSpec, LinearHead, MlpHead, build_heads, head_spec, initial_head_value


def spec(**settings: object) -> HeadSpec:
    return head_spec(
        HeadConfig.model_validate(settings), default_dropout=0.3, input_size=4, outputs=2, regression=False
    )


def test_what_the_configuration_leaves_out_comes_from_the_model() -> None:
    assert spec().dropout == 0.3
    assert spec(dropout=0.0).dropout == 0.0
    assert spec().hidden_size is None
    assert spec(kind="mlp").hidden_size == 4
    assert spec(kind="mlp", hidden_size=9).hidden_size == 9


def test_an_mlp_head_is_linear_relu_dropout_linear() -> None:
    head = MlpHead(4, spec(kind="mlp", hidden_size=6)).eval()
    pooled = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    expected = nn.Sequential(head.hidden, nn.ReLU(), nn.Dropout(0.0), head.output)(pooled)
    assert torch.equal(head(pooled), expected)
    dropping = MlpHead(4, spec(kind="mlp", dropout=0.9999999)).train()
    assert torch.equal(dropping(pooled), dropping.output.bias.expand(3, 2)), "dropout sits before the last layer"


def test_a_linear_head_drops_its_input() -> None:
    dropping = LinearHead(4, spec(dropout=0.9999999)).train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(dropping(torch.ones(3, 4)), dropping.output.bias.expand(3, 2))


def test_heads_are_built_by_kind() -> None:
    heads = build_heads({"a": spec(), "b": spec(kind="mlp")}, 4)
    assert isinstance(heads["a"], LinearHead)
    assert isinstance(heads["b"], MlpHead)


def test_first_values_are_normal_weights_and_zero_biases_by_seed_and_name() -> None:
    value = initial_head_value("heads.a.output.weight", (200, 100), seed=1, std=0.02)
    assert abs(float(value.std()) - 0.02) < 0.001
    assert torch.equal(value, initial_head_value("heads.a.output.weight", (200, 100), seed=1, std=0.02))
    assert not torch.equal(value, initial_head_value("heads.b.output.weight", (200, 100), seed=1, std=0.02))
    assert not torch.equal(value, initial_head_value("heads.a.output.weight", (200, 100), seed=2, std=0.02))
    assert not initial_head_value("heads.a.output.bias", (3,), seed=1, std=0.02).any()
