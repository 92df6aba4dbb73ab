"""Blueprints refuse what no model family can mean."""

from __future__ import annotations

import pytest
from hypothesis import given

from common.blueprint import RESERVED, Blueprint, ParameterSpec
from common.errors import PlanError
from tests.common.plan_strategies import blueprints, glue_blueprint, spec


def test_elements_are_counted_for_scalars_and_empty_tensors_too() -> None:
    assert spec("w", "a", shape=(2, 3)).numel == 6
    assert spec("w", "a", shape=()).numel == 1
    assert spec("w", "a", shape=(2, 0)).numel == 0


def test_a_parameter_that_nobody_uses_is_refused() -> None:
    with pytest.raises(PlanError, match="'w' is used by no task"):
        ParameterSpec("w", (2,), "float32", frozenset(), frozenset(), "head")


def test_a_parameter_trained_by_a_task_that_does_not_read_it_is_refused() -> None:
    with pytest.raises(PlanError, match=r"trained by \['b'\], which do not use it"):
        spec("w", "a", "a b")


@pytest.mark.parametrize("name", ["", *(f"a{character}b" for character in sorted(RESERVED))])
def test_task_names_that_would_make_slot_ids_ambiguous_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match="task name"):
        Blueprint("f", (name,), ())


def test_a_parameter_or_task_listed_twice_is_refused() -> None:
    with pytest.raises(PlanError, match="lists a parameter twice"):
        Blueprint("f", ("a",), (spec("w", "a"), spec("w", "a", shape=(3,))))
    with pytest.raises(PlanError, match="lists a task twice"):
        Blueprint("f", ("a", "a"), (spec("w", "a"),))


def test_a_parameter_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(PlanError, match=r"used by unknown tasks \['b'\]"):
        Blueprint("f", ("a",), (spec("w", "a b"),))


@given(blueprints())
def test_what_a_task_uses_comes_in_model_order(blueprint: Blueprint) -> None:
    for task in blueprint.tasks:
        expected = [p for p in blueprint.parameters if task in p.used_by]
        assert list(blueprint.used_by(task)) == expected


def test_equal_blueprints_are_equal_values() -> None:
    assert glue_blueprint() == glue_blueprint()
    assert hash(glue_blueprint()) == hash(glue_blueprint())
    assert glue_blueprint("sst2 qqp") != glue_blueprint("qqp sst2")
