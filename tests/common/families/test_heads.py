"""Heads: order of their layers, and what their first values depend on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from common.families.config import HeadConfig, Pairs
from common.families.heads import (
    CosineHead,
    HeadSpec,
    LinearHead,
    MlpHead,
    build_heads,
    head_spec,
    initial_head_value,
    pair_features,
)
from common.tasks import load_registry

TASKS = load_registry(
    {
        "one": {"kind": "classification", "text": "a", "labels": ["x", "y"]},
        "pair": {"kind": "classification", "text": ["a", "b"], "labels": ["x", "y"]},
        "score": {"kind": "regression", "text": ["a", "b"], "label_range": [1, 5]},
        "unbounded": {"kind": "regression", "text": ["a", "b"]},
        "cosine": {"kind": "regression", "text": ["a", "b"], "label_range": [0, 5], "loss": "cosine"},
    },
    "test_heads.py",
)


def spec(task: str = "one", of_model: Pairs = "joint", **settings: object) -> HeadSpec:
    return head_spec(
        HeadConfig.model_validate(settings), TASKS[task], default_dropout=0.3, pairs=of_model, input_size=4
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


def test_pairs_are_separate_where_model_or_head_say_so_and_there_are_two_texts() -> None:
    assert not spec("pair").separate
    assert spec("pair", "separate").separate
    assert spec("pair", pairs="separate").separate
    assert not spec("one", "separate").separate, "a single text is no pair"
    heads = build_heads({"a": spec("pair", "separate"), "b": spec("pair", "separate", kind="mlp")}, 4)
    assert heads["a"].output.weight.shape == (2, 16)  # type: ignore[union-attr]  # a LinearHead
    assert heads["b"].hidden.weight.shape == (4, 16)  # type: ignore[union-attr]  # as wide as the encoder


def test_the_features_of_a_pair_are_both_vectors_their_distance_and_their_product() -> None:
    u, v = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]])
    assert pair_features(u, v).tolist() == [[1, -2, 3, 4, 2, 6, 3, -8]]


def test_a_cosine_head_scores_between_the_ends_of_the_labels() -> None:
    found = spec("score", "separate", kind="cosine")
    head = build_heads({"a": found}, 2)["a"]
    assert isinstance(head, CosineHead)
    assert not list(head.parameters())
    vectors = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [1.0, 0.0]]])
    torch.testing.assert_close(head(vectors), torch.tensor([[5.0], [1.0], [1 + 4 * 0.5**0.5]]))


@pytest.mark.parametrize(
    ("task", "pairs", "settings", "message"),
    [
        ("one", "joint", {"pairs": "separate"}, "is for a task with two texts"),
        ("score", "joint", {"kind": "cosine"}, "pairs: separate"),
        ("pair", "separate", {"kind": "cosine"}, "for a regression"),
        ("unbounded", "separate", {"kind": "cosine"}, "`label_range`"),
        ("cosine", "separate", {}, "'cosine' needs model.heads.cosine: cosine"),
    ],
)
def test_a_head_that_does_not_fit_its_task_is_refused(
    task: str, pairs: Pairs, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(task, pairs, **settings)


def test_first_values_are_normal_weights_and_zero_biases_by_seed_and_name() -> None:
    value = initial_head_value("heads.a.output.weight", (200, 100), seed=1, std=0.02)
    assert abs(float(value.std()) - 0.02) < 0.001
    assert torch.equal(value, initial_head_value("heads.a.output.weight", (200, 100), seed=1, std=0.02))
    assert not torch.equal(value, initial_head_value("heads.b.output.weight", (200, 100), seed=1, std=0.02))
    assert not torch.equal(value, initial_head_value("heads.a.output.weight", (200, 100), seed=2, std=0.02))
    assert not initial_head_value("heads.a.output.bias", (3,), seed=1, std=0.02).any()
