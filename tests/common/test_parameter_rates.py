"""Rates by place in the model, and what `groups` changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blueprint import ParameterSpec
from common.parameter_rates import ParameterRate, parameter_rates
from common.training import TrainSettings
from tests.common.test_selectors import encoder

WORDS, FIRST, LAST = (
    "encoder.embeddings.word_embeddings.weight",
    "encoder.encoder.layer.0.attention.self.query.weight",
    "encoder.encoder.layer.3.attention.self.query.weight",
)
NORM, POOLER, HEAD = (
    "encoder.encoder.layer.3.output.LayerNorm.bias",
    "encoder.pooler.dense.weight",
    "heads.sst2.output.weight",
)


def rates(specs: list[ParameterSpec] | None = None, **settings: Any) -> dict[str, ParameterRate]:  # noqa: ANN401
    return dict(parameter_rates(specs or encoder(4), TrainSettings.model_validate(settings)))


def test_heads_learn_five_times_as_fast_and_matrices_outside_the_embeddings_decay() -> None:
    found = rates(weight_decay=0.1)
    assert found[WORDS] == ParameterRate(1, 0)
    assert found[FIRST] == found[LAST] == found[POOLER] == ParameterRate(1, 0.1)
    assert found[NORM] == ParameterRate(1, 0)
    assert found[HEAD] == ParameterRate(5, 0.1)


def test_the_rate_falls_by_a_factor_per_layer_from_the_top() -> None:
    found = {name: rate.multiplier for name, rate in rates(layer_decay=0.5, head_learning_rate=3).items()}
    assert found[HEAD] == 3
    assert found[POOLER] == 1
    assert (found[LAST], found[NORM]) == (1 / 2, 1 / 2)
    assert found[FIRST] == 1 / 16
    assert found[WORDS] == found["encoder.embeddings.LayerNorm.weight"] == 1 / 32


@given(st.integers(1, 24), st.floats(0.1, 1))
def test_decay_by_layer_never_rises_towards_the_input(layers: int, decay: float) -> None:
    specs = encoder(layers)
    found = rates(specs, layer_decay=decay, head_learning_rate=1)
    order = ["embeddings", *(f"layer.{number}" for number in range(layers)), "pooler"]
    curve = [next(found[s.name].multiplier for s in specs if s.group == group) for group in order]
    assert curve[-1] == 1
    assert curve == pytest.approx([decay ** (layers + 1 - place) for place in range(layers + 2)])


def test_what_lies_outside_the_layers_learns_like_the_embeddings() -> None:
    beside = ParameterSpec("encoder.relative.weight", (2, 2), "float32", frozenset("a"), frozenset("a"), "encoder")
    assert rates([*encoder(4), beside], layer_decay=0.5)[beside.name] == ParameterRate(1 / 32, 0.01)


def test_groups_replace_rates_and_the_last_word_counts() -> None:
    found = rates(
        layer_decay=0.5,
        weight_decay=0.1,
        groups=[
            {"match": "backbone", "learning_rate": 0.3},
            {"match": ["layers:0-2", "head:sst2"], "weight_decay": 0.5},
            {"match": "encoder.*.LayerNorm.*", "learning_rate": 0.7},
            {"match": "layers:2-3", "learning_rate": 2.0},
            {"match": "head:qqp", "learning_rate": 9.0, "weight_decay": 0},
        ],
    )
    assert found[WORDS] == ParameterRate(0.3, 0)
    assert found["encoder.embeddings.LayerNorm.weight"] == ParameterRate(0.7, 0)
    assert found[FIRST] == ParameterRate(0.3, 0.5)
    assert found[LAST] == ParameterRate(2, 0.1)
    assert found[NORM] == ParameterRate(2, 0)
    assert found[HEAD] == ParameterRate(5, 0.5)
    assert found["heads.qqp.output.weight"] == ParameterRate(9, 0)


def test_embeddings_decay_by_an_entry_and_vectors_never() -> None:
    specs = encoder(2)
    bias = ParameterSpec("encoder.encoder.layer.0.x.bias", (2,), "float32", frozenset("a"), frozenset("a"), "layer.0")
    found = rates([*specs, bias], groups=[{"match": "everything", "weight_decay": 0.2}])
    assert found[WORDS].weight_decay == 0.2
    assert found[bias.name].weight_decay == 0
    assert found["encoder.embeddings.LayerNorm.weight"].weight_decay == 0


def test_an_entry_for_a_head_that_is_not_here_changes_nothing() -> None:
    mine = [spec for spec in encoder(4) if "qqp" not in spec.name]
    assert rates(mine, groups=[{"match": "head:qqp", "learning_rate": 9}]) == rates(mine)
