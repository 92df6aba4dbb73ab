"""Every block of YAML in docs/training.md is a configuration that the server takes, down to the model's parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import ConfigError
from common.families import build_family
from common.families.config import LoraSettings
from common.losses import LOSSES
from common.selectors import KEYWORDS
from common.training import TrainSettings
from server.config import resolve_config
from server.freezing_config import FreezingConfig
from server.selection_config import EarlyStoppingConfig, SelectionConfig
from server.strategy import initial_plan
from server.training_settings import check_selectors
from server.unfreezing import resolve_schedule

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/training.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

#: What the blocks are laid over: twelve narrow layers, so that `layers:0-9` are there, and the tasks of the page.
BASE: Mapping[str, Any] = {
    "model": {
        "family": "transformer",
        "encoder": {
            "config": {
                "model_type": "bert",
                "hidden_size": 8,
                "num_hidden_layers": 12,
                "num_attention_heads": 2,
                "intermediate_size": 8,
                "max_position_embeddings": 64,
            },
            "tokenizer": "synthetic-words",
        },
        "max_length": 48,
    },
    "tasks": {
        task: {"use": task, "data": {"synthetic": task, "train": 20, "validation": 10}}
        for task in ("sst2", "qqp", "stsb")
    },
}


def over(base: Any, block: Any) -> Any:  # noqa: ANN401  # YAML
    """The block laid over the base; mappings are joined, all else is replaced."""
    if not isinstance(base, Mapping) or not isinstance(block, Mapping):
        return block
    return {key: over(base.get(key), value) for key, value in {**base, **block}.items()} | {
        key: base[key] for key in base.keys() - block.keys()
    }


def take(text: str) -> None:
    """Do with a block what the server does when a run begins, short of writing anything."""
    loaded = resolve_config(over(BASE, yaml.safe_load(text)), "training.md", ROOT)
    config = loaded.config
    family = build_family(config.model, loaded.specs, base_dir=ROOT)
    check_selectors(config.training, config.training_overrides, family.blueprint(), loaded.source)
    plan = initial_plan(
        config.federation.mode, family.blueprint(), config.federation.resident, config.federation.correction
    )
    resolve_schedule(config.freezing, plan, loaded.source)


@pytest.mark.parametrize("text", BLOCKS)
def test_blocks_are_valid(text: str) -> None:
    take(text)


@pytest.mark.parametrize(
    "text",
    [
        "freezing: {freeze: [backbones]}",
        "freezing: {freeze: ['layers:12']}",
        "training: {surgery: pcgrad}",
        "training: {loss_weights: {nobody: 1}}",
        "federation: {correction: scaffold}",
        "tasks: {stsb: {loss: cosine}}",
    ],
)
def test_what_is_wrong_would_be_seen(text: str) -> None:
    with pytest.raises(ConfigError):
        take(text)


def test_the_page_names_every_setting() -> None:
    models = (TrainSettings, FreezingConfig, SelectionConfig, EarlyStoppingConfig, LoraSettings)
    words = set(re.findall(r"\w+", PAGE))
    assert {f"{model.__name__}.{name}" for model in models for name in model.model_fields if name not in words} == set()
    assert set(KEYWORDS) <= words
    assert {tag.strip("<>") for tag in LOSSES} <= words


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
