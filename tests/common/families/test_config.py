"""The `model:` section: shorthands, defaults, refusals, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from common.families.config import HeadConfig, TransformerConfig
from common.families.tabular_config import SharedBottomConfig
from tests.common.families.tiny import config

INLINE = {"config": {"model_type": "bert"}, "tokenizer": "synthetic-words"}


def transformer(**settings: object) -> TransformerConfig:
    parsed = config(**{"family": "transformer", "encoder": "org/model", **settings})
    assert isinstance(parsed, TransformerConfig)
    return parsed


def test_a_head_may_be_named_by_its_kind() -> None:
    parsed = transformer(head="mlp", heads={"sst2": "linear", "qqp": {"kind": "mlp", "hidden_size": 8}})
    assert parsed.head == HeadConfig(kind="mlp")
    assert parsed.heads == {"sst2": HeadConfig(), "qqp": HeadConfig(kind="mlp", hidden_size=8)}


def test_named_encoders_are_pretrained_and_inline_ones_are_not() -> None:
    assert transformer().pretrained
    assert not transformer(weights="random").pretrained
    assert not transformer(encoder=INLINE).pretrained


def test_the_configuration_survives_being_written_and_read() -> None:
    for parsed in (transformer(encoder=INLINE, head="mlp"), config(family="shared_bottom", numeric={"a": {}})):
        assert type(parsed).model_validate_json(parsed.model_dump_json()) == parsed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "transformer", "encoder": "a", "poolling": "cls"}, "poolling"),
        ({"family": "transformer", "encoder": "a", "pooling": "sum"}, "'cls', 'mean', 'max' or 'first_last'"),
        ({"family": "transformer", "encoder": "a", "layers": 0}, "greater than or equal to 1"),
        ({"family": "transformer", "encoder": "a", "head": {"kind": "linear", "hidden_size": 3}}, "kind: mlp"),
        ({"family": "transformer", "encoder": "a", "head": {"kind": "cosine", "dropout": 0.1}}, "no dropout"),
        ({"family": "transformer", "encoder": "a", "head": {"kind": "cosine", "pairs": "joint"}}, "compares two"),
        ({"family": "transformer", "encoder": INLINE, "weights": "pretrained"}, "weights: random"),
        ({"family": "transformer", "encoder": {"config": {}, "tokenizer": "x"}}, "model_type"),
        ({"family": "transformer"}, "encoder"),
        ({"family": "forest"}, "forest"),
        ({"family": "shared_bottom"}, "no input column"),
        ({"family": "shared_bottom", "numeric": {"a": {"std": 0}}}, "greater than 0"),
        ({"family": "shared_bottom", "numeric": {"a": {"mean": float("nan")}}}, "finite"),
        ({"family": "shared_bottom", "categorical": {"a": ["x", " y"]}}, "'a': ' y' is empty or has blanks around it"),
        ({"family": "shared_bottom", "categorical": {"a": [""]}}, "'a': '' is empty"),
        ({"family": "shared_bottom", "numeric": {"a": {}}, "missing": " ?"}, "missing: ' \\?' has blanks around it"),
        (
            {"family": "shared_bottom", "numeric": {"a": {}}, "categorical": {"a": ["x"]}},
            "both numeric and categorical",
        ),
        ({"family": "shared_bottom", "categorical": {"a": ["x", "x"]}}, "twice"),
        ({"family": "shared_bottom", "categorical": {"a": ["x", "?"]}}, "missing marker"),
        ({"family": "shared_bottom", "categorical": {"a": []}}, "at least 1"),
        ({"family": "shared_bottom", "numeric": {"a": {}}, "bottom": []}, "at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)


def test_every_setting_is_documented() -> None:
    for model in (TransformerConfig, SharedBottomConfig, HeadConfig):
        undocumented = [name for name, field in model.model_fields.items() if not field.description]
        assert undocumented in ([], ["family"], ["kind"])


def test_reading_a_configuration_loads_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, common.families.config, common.families; print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
