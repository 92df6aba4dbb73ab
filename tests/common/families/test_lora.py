"""Low-rank adapters: what is frozen, what travels, where they start, and that merging changes no output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ConfigError, ProtocolError
from common.families import build_family, family_from_description
from common.families.base import Family, MultiTaskModel
from common.families.lora import LoraSpec, adapted_name, merged
from common.selectors import is_adapter, select
from tests.common.families.tiny import ENCODERS, TASKS, config, text_family, texts

pytest.importorskip("peft", reason="the extra `lora` is not installed")

#: Architecture to targets where peft has no default, or none that covers a tiny one.
TARGETS = {"albert": {"targets": ["query", "value"]}, "distilbert": {"targets": ["q_lin", "v_lin"]}}
BERT_BASE = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072,
}  # fmt: skip


def lora_family(encoder: str = "bert", lora: Mapping[str, object] | None = None, **settings: object) -> Family:
    return text_family(encoder, lora={"rank": 2, **TARGETS.get(encoder, {}), **(lora or {})}, **settings)  # type: ignore[arg-type]  # any `model:` setting


def loaded(family: Family, values: Mapping[str, torch.Tensor]) -> MultiTaskModel:
    model = family.build(list(family.tasks))
    missing = model.load_state_dict(dict(values), strict=False).missing_keys
    assert not [name for name in missing if "ids" not in name]
    return model.eval()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_base_weights_are_frozen_and_adapters_start_from_the_encoder_as_it_was(encoder: str) -> None:
    plain, family = text_family(encoder), lora_family(encoder)
    client = family_from_description(json.loads(json.dumps(family.describe())), family.assets(), TASKS)
    assert client.blueprint() == family.blueprint()
    specs = family.blueprint().parameters
    values, plain_values = family.initial_values(1), plain.initial_values(1)
    assert list(values) == [spec.name for spec in specs]
    for spec in specs:
        trained = is_adapter(spec.name) or spec.group in ("head", "pooler")
        assert spec.trained_by == (spec.used_by if trained else frozenset()), spec.name
        assert values[spec.name].shape == spec.shape
        if is_adapter(spec.name):
            assert spec.group.startswith("layer."), spec.name
            assert bool(values[spec.name].any()) == ("lora_A" in spec.name)
        else:
            assert torch.equal(values[spec.name], plain_values[spec.name.replace(".base_layer.", ".")])
    assert select("adapters", specs) == {spec.name for spec in specs if is_adapter(spec.name)}
    batch = family.encode("qqp", texts("qqp")).collate(np.arange(5))
    with torch.no_grad():
        outputs = loaded(client, values)("qqp", batch)
        # Not bit for bit: of a plain last layer no keys are made for the first token.
        torch.testing.assert_close(outputs, loaded(plain, plain_values)("qqp", batch), atol=1e-6, rtol=0)
        moved = {n: v + 0.1 if is_adapter(n) else v for n, v in values.items()}
        assert not torch.allclose(loaded(client, moved)("qqp", batch), outputs, atol=1e-4)


def test_adapters_start_by_seed_and_name_alone() -> None:
    values = lora_family().initial_values(1)
    few = lora_family(tasks={"sst2": TASKS["sst2"]}, lora={"targets": "query"}).initial_values(1)
    adapters = [name for name in few if is_adapter(name)]
    assert all(torch.equal(values[name], few[name]) for name in adapters)
    drawn = [values[name].flatten().tolist() for name in values if "lora_A" in name]
    assert len({tuple(row) for row in drawn}) == len(drawn)
    assert max(max(map(abs, row)) for row in drawn) <= 32**-0.5
    other = lora_family().initial_values(2)
    assert not any(torch.equal(values[name], other[name]) for name in adapters if "lora_A" in name)


def test_an_update_of_bert_base_is_below_one_percent_of_the_full_one() -> None:
    settings = {"family": "transformer", "encoder": {"config": BERT_BASE, "tokenizer": "synthetic-words"}}

    def update_bytes(**more: object) -> int:
        specs = build_family(config(**settings, **more), TASKS, base_dir=Path()).blueprint().parameters
        return sum(4 * spec.numel for spec in specs if "sst2" in spec.trained_by)

    full = update_bytes()
    assert full == 4 * (109_482_240 + 2 * 769)
    adapters = 12 * 2 * 2 * 8 * 768
    assert update_bytes(lora={}) == 4 * (adapters + 768 * 769 + 2 * 769) < 0.01 * full
    assert update_bytes(lora={"train_pooler": False}) == 4 * (adapters + 2 * 769) < 0.003 * full


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("query", {0: ["query"], 1: ["query"], 2: ["query"]}),
        (["encoder.layer.[12].*.value", "encoder.layer.2.output.dense"], {1: ["value"], 2: ["value", "dense"]}),
    ],
)
def test_targets_are_names_or_patterns(targets: object, layers: dict[int, list[str]]) -> None:
    family = lora_family(lora={"targets": targets})
    names = [p.name for p in family.blueprint().parameters if "lora_A" in p.name]
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(int(name.split(".")[3]), []).append(name.split(".")[-4])
    assert found == layers


@pytest.mark.parametrize(
    ("encoder", "lora", "message"),
    [
        (
            "bert",
            {"targets": ["qeury"]},
            "'qeury' is no linear layer of this encoder; they are named dense, key, query",
        ),
        ("bert", {"targets": "LayerNorm"}, "is no linear layer"),
        ("distilbert", {"targets": []}, "no default for 'distilbert'; name some of its linear layers: k_lin"),
    ],
)
def test_targets_that_are_not_there_are_refused_by_name(encoder: str, lora: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lora_family(encoder, lora)


def test_without_peft_both_ends_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    family = lora_family()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedmtl\[lora\]'"):
        lora_family()
    with pytest.raises(ConfigError, match="on every client"):
        family_from_description(family.describe(), family.assets(), TASKS)
    text_family("bert")


def test_a_description_of_layers_that_are_not_there_is_a_protocol_error() -> None:
    family = lora_family()
    for targets in (["nowhere"], ["query"]):
        damaged = {**family.describe(), "lora": {**family.describe()["lora"], "targets": targets}}
        with pytest.raises(ProtocolError, match="peft"):
            family_from_description(damaged, family.assets(), TASKS).blueprint()


def test_merging_gives_the_plain_model_that_computes_the_same() -> None:
    family, plain = lora_family(lora={"rank": 3, "alpha": 5}), text_family("bert")
    generator = torch.Generator().manual_seed(1)
    values = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in family.initial_values(3).items()}
    before = {name: value.clone() for name, value in values.items()}
    spec = LoraSpec.model_validate(family.describe()["lora"])
    flat = merged(values, spec, "encoder.")
    assert list(flat) == [p.name for p in plain.blueprint().parameters]
    assert all(torch.equal(values[name], before[name]) for name in values)
    batch = family.encode("stsb", texts("stsb")).collate(np.arange(5))
    with torch.no_grad():
        ours, theirs = loaded(family, values)("stsb", batch), loaded(plain, flat)("stsb", batch)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    inside = [name.removeprefix("encoder.") for name in flat if name.startswith("encoder.")]
    assert {f"encoder.{adapted_name(name, spec)}" for name in inside} <= values.keys()
