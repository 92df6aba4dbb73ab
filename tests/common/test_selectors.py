"""Selectors of parameters: what each form means, and what a wrong one is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blueprint import ParameterSpec
from common.errors import ConfigError
from common.selectors import is_adapter, is_norm, layer_count, layer_of, select, select_present

BOTH = frozenset({"sst2", "qqp"})


def spec(name: str, group: str, tasks: frozenset[str] = BOTH) -> ParameterSpec:
    return ParameterSpec(name, (2, 2), "float32", tasks, tasks, group)


def encoder(layers: int) -> list[ParameterSpec]:
    return [
        spec("encoder.embeddings.word_embeddings.weight", "embeddings"),
        spec("encoder.embeddings.LayerNorm.weight", "embeddings"),
        *(
            spec(f"encoder.encoder.layer.{i}.{part}", f"layer.{i}")
            for i in range(layers)
            for part in ("attention.self.query.weight", "output.LayerNorm.bias")
        ),
        spec("encoder.pooler.dense.weight", "pooler"),
        *(spec(f"heads.{task}.output.weight", "head", frozenset({task})) for task in sorted(BOTH)),
    ]


def test_what_each_selector_means() -> None:
    specs = encoder(4)
    names = {s.name for s in specs}
    heads = {"heads.sst2.output.weight", "heads.qqp.output.weight"}
    assert select("everything", specs) == names
    assert select("heads", specs) == heads
    assert select("backbone", specs) == names - heads
    assert select("head:sst2", specs) == {"heads.sst2.output.weight"}
    assert select("own:sst2", specs) == {"heads.sst2.output.weight"}
    assert select("embeddings", specs) == {s.name for s in specs if s.group == "embeddings"}
    assert select("pooler", specs) == {"encoder.pooler.dense.weight"}
    assert select("norms", specs) == {name for name in names if "LayerNorm" in name}
    assert select("layers:1-2", specs) == {s.name for s in specs if s.group in ("layer.1", "layer.2")}
    assert select("layers:3", specs) == {s.name for s in specs if s.group == "layer.3"}
    assert select("encoder.*.query.weight", specs) == {name for name in names if name.endswith("query.weight")}
    assert select(["pooler", "head:qqp"], specs) == {"encoder.pooler.dense.weight", "heads.qqp.output.weight"}


@given(st.integers(3, 40))
def test_thirds_cover_the_encoder_once_and_are_as_equal_as_can_be(layers: int) -> None:
    specs = encoder(layers)
    parts = [select(name, specs) for name in ("lower", "middle", "upper")]
    assert frozenset().union(*parts) == select("backbone", specs)
    assert sum(map(len, parts)) == len(select("backbone", specs))
    sizes = [layer_count(s for s in specs if s.name in part) for part in parts]
    held = [len({s.group for s in specs if s.name in part and layer_of(s.group) is not None}) for part in parts]
    assert max(held) - min(held) <= 1
    assert held[2] == max(held)
    assert sizes[2] == layers


@pytest.mark.parametrize("text", ["", "head", "layer.0x", "layers:", "layers:-1", "lowest", "LayerNorm"])
def test_an_unknown_form_is_refused_with_what_is_allowed(text: str) -> None:
    specs = encoder(3)
    if text == "layer.0x":  # a pattern that matches nothing
        with pytest.raises(ConfigError, match=r"'layer\.0x' matches no parameter .*embeddings, layer\.0"):
            select(text, specs)
        return
    with pytest.raises(ConfigError, match=r"selects nothing: allowed are everything, backbone, .* head:TASK"):
        select(text, specs)


@pytest.mark.parametrize("text", ["head:rte", "own:rte", "layers:3-5", "adapters", "heads.rte.*"])
def test_a_selector_that_matches_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="matches no parameter of this model"):
        select(text, encoder(3))


def test_layers_beyond_the_encoder_are_refused() -> None:
    with pytest.raises(ConfigError, match="'layers:1-3': the encoder's layers are 0 to 2"):
        select("layers:1-3", encoder(3))


def test_a_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match="'layers:2-1': the range runs backwards"):
        select("layers:2-1", encoder(3))


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("encoder.embeddings.LayerNorm.weight", True),
        ("encoder.layer.0.sa_layer_norm.bias", True),
        ("bottom.bn1.running_mean", True),
        ("h.0.ln_1.weight", True),
        ("h.0.ln_f.weight", True),
        ("encoder.layer.0.attention.output.dense.weight", False),
        ("heads.normal.output.weight", False),
        ("vit.layer.0.layernorm_before.weight", True),
        ("encoder.final_layer_norm.weight", True),
        ("encoder.blank.weight", False),
    ],
)
def test_norm_layers_are_known_by_name(name: str, norm: bool) -> None:
    assert is_norm(name) is norm


def test_adapters_are_known_by_name() -> None:
    assert is_adapter("encoder.layer.0.attention.self.query.lora_A.default.weight")
    assert not is_adapter("encoder.layer.0.attention.self.query.base_layer.weight")


def test_of_a_part_of_a_model_a_selector_may_mean_nothing() -> None:
    mine = [s for s in encoder(4) if "qqp" not in s.name]
    assert select_present(["head:qqp"], mine) == frozenset()
    assert select_present(["head:qqp", "pooler"], mine) == {"encoder.pooler.dense.weight"}
    assert select_present(["upper", "heads"], mine) == select(["upper", "heads"], mine)
