"""The ``freezing:`` section: forms, and what is refused before any model is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from server.config import LoadedConfig, resolve_config
from server.freezing_config import FreezingConfig
from server.start import resolved

MODEL = {"family": "transformer", "encoder": "some/encoder"}


def load(freezing: Any) -> LoadedConfig:  # noqa: ANN401  # a YAML value
    data = {"model": MODEL, "tasks": {"sst2": {"use": "sst2"}, "qqp": {"use": "qqp"}}, "freezing": freezing}
    return resolve_config(data, "my.yaml", Path())


def test_short_forms_mean_the_long_ones() -> None:
    short = {"freeze": "backbone", "schedule": [{"from_round": 1, "open": "heads"}]}
    entry = {"match": ["heads"], "tasks": None}
    long = {"freeze": [{"match": ["backbone"]}], "schedule": [{"from_round": 1, "open": [entry]}]}
    assert load(short).config.freezing == load(long).config.freezing


def test_what_a_run_keeps_of_it_loads_again() -> None:
    given = {"freeze": [{"match": ["norms", "lower"], "tasks": ["sst2"]}], "gradual": {}}
    kept = resolved(load(given), "x")["freezing"]
    assert FreezingConfig.model_validate(kept) == load(given).config.freezing
    assert load(given).config.freezing.gradual is not None


@pytest.mark.parametrize(
    ("freezing", "words"),
    [
        ({"freez": []}, "my.yaml: freezing.freez: unknown key; the keys here are freeze, gradual, schedule"),
        (
            {"freeze": ["backbones"]},
            "my.yaml: freezing.freeze.0.match: 'backbones' selects nothing: allowed are everything",
        ),
        ({"freeze": [{"match": []}]}, "my.yaml: freezing.freeze.0.match: Tuple should have at least 1 item"),
        ({"freeze": [{"match": "heads", "task": ["a"]}]}, "my.yaml: freezing.freeze.0.task: unknown key"),
        (
            {"schedule": [{"from_round": 1, "open": ["heads"]}, {"from_round": 1, "open": ["upper"]}]},
            "my.yaml: freezing.schedule: the stages' from_round must ascend, each of them once: [1, 1]",
        ),
        ({"schedule": [{"from_round": 2, "open": ["heads"]}]}, "the first stage must be from_round 1, not 2"),
        ({"schedule": [{"from_round": 0, "open": ["heads"]}]}, "my.yaml: freezing.schedule.0.from_round:"),
        ({"schedule": [{"from_round": 1, "open": []}]}, "my.yaml: freezing.schedule.0.open:"),
        ({"gradual": {"rounds_per_layer": 0}}, "my.yaml: freezing.gradual.rounds_per_layer:"),
        ({"gradual": {}, "schedule": [{"from_round": 1, "open": ["heads"]}]}, "give schedule or gradual, not both"),
    ],
)
def test_mistakes_are_named_with_file_key_and_value(freezing: Any, words: str) -> None:  # noqa: ANN401  # YAML values
    with pytest.raises(ConfigError) as caught:
        load(freezing)
    assert words in str(caught.value)
