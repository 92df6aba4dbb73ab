"""Families made equally large."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from common.errors import ConfigError
from common.families.config import AnyTabularConfig
from common.families.expert_config import MMoEConfig, PLEConfig
from common.families.matching import count, flexible_widths, matched
from common.families.tabular_config import SharedBottomConfig
from tests.common.families.cases import CASES
from tests.common.families.tabular import INPUTS, TASKS, tabular

SECTION: TypeAdapter[AnyTabularConfig] = TypeAdapter(AnyTabularConfig)


def section(family: str, **settings: object) -> Any:  # noqa: ANN401  # any of them
    return SECTION.validate_python({**INPUTS, "family": family, **settings})


@pytest.mark.parametrize("case", CASES)
def test_the_count_is_that_of_the_model_for_all_tasks(case: str) -> None:
    name, settings = CASES[case]
    model = tabular(name, **settings).build(list(TASKS))
    assert count(section(name, **settings), TASKS) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_every_family_can_be_made_as_large_as_another(case: str) -> None:
    name, settings = CASES[case]
    found = matched(section(name, **settings), TASKS, 4_000)
    assert count(found, TASKS) == pytest.approx(4_000, rel=0.06)
    assert SECTION.validate_python(found.model_dump()) == found, "it is a valid section"


def test_no_width_is_nearer_than_the_one_found() -> None:
    found = matched(section("shared_bottom", bottom=[3]), TASKS, 1_000)
    assert isinstance(found, SharedBottomConfig)
    (width,) = found.bottom
    distance = {
        other: abs(count(found.model_copy(update={"bottom": [other]}), TASKS) - 1_000)
        for other in range(width - 2, width + 3)
    }
    assert min(distance, key=lambda other: distance[other]) == width


def test_layers_keep_their_proportions_and_numbers_of_experts_stay() -> None:
    wide = matched(section("mmoe", experts={"number": 3, "hidden": [40, 20]}), TASKS, 20_000)
    assert isinstance(wide, MMoEConfig)
    assert wide.experts.number == 3
    assert wide.experts.hidden[0] / wide.experts.hidden[1] == pytest.approx(2, rel=0.03)
    level = {"shared": {"number": 2, "hidden": [5]}, "own": {"number": 1, "hidden": [9, 5]}}
    ple = matched(section("ple", levels=[level, level]), TASKS, 20_000)
    assert isinstance(ple, PLEConfig)
    assert [part.own.number for part in ple.levels] == [1, 1]
    assert all(part.own.hidden[-1] == part.shared.hidden[-1] for part in ple.levels)
    assert flexible_widths(ple)[0] > 5


def test_a_size_that_widths_cannot_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no widths give 20 parameters.*there are \d+ already"):
        matched(section("mmoe"), TASKS, 20)
