"""Models by name, sized alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.families.matching import count
from experiments.models import ALIASES, MODELS, model_name, model_section
from tests.experiments.people import people


def test_every_alias_means_a_model() -> None:
    assert {model_name(alias) for alias in ALIASES} <= MODELS.keys()


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--model MMoe: allowed are single_task, .*MultiGateMixtureOfExperts"):
        model_name("MMoe")


def test_all_models_are_as_large_as_the_reference(tmp_path: Path) -> None:
    problem = people(tmp_path)
    inputs = {**problem.inputs, "categorical": {"code": [str(n) for n in range(200)]}}
    reference = count(model_section("mmoe", inputs, problem.tasks), problem.tasks)
    assert reference == 8 * (203 + 1) * 16 + 2 * 203 * 8 + 2 * ((16 + 1) * 8 + (8 + 1) * 2)
    for name in MODELS:
        found = count(model_section(name, inputs, problem.tasks), problem.tasks)
        assert abs(found / reference - 1) < 0.05, name
