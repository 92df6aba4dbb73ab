"""The plan a run starts from."""

from __future__ import annotations

import pytest

from common.blueprint import Blueprint, ParameterSpec
from common.control_variates import is_control, with_controls
from common.errors import ConfigError
from common.plan import SharingPlan
from server.strategy import initial_plan
from tests.server.tiny_run import BLUEPRINT


def test_mtl_shares_the_encoder_and_not_the_heads() -> None:
    plan = initial_plan("mtl", BLUEPRINT)
    assert plan == SharingPlan.shared(BLUEPRINT)
    assert {slot.id for slot in plan.slots} >= {"body@mood+topic", "head.mood@mood", "head.topic@topic"}


def test_per_task_shares_nothing() -> None:
    plan = initial_plan("per_task", BLUEPRINT)
    assert all(len(slot.tasks) == 1 for slot in plan.slots)
    mood, topic = plan.slice({"mood"}), plan.slice({"topic"})
    assert not {slot.id for slot in mood.slots} & {slot.id for slot in topic.slots}


def test_what_is_selected_lives_on_the_clients() -> None:
    plan = initial_plan("per_task", BLUEPRINT, ["head.*"])
    assert {slot.id for slot in plan.slots if slot.residence == "client"} == {"head.mood@mood", "head.topic@topic"}
    assert plan.reside([slot.id for slot in plan.slots], "server") == SharingPlan.separate(BLUEPRINT)
    alone = initial_plan("mtl", BLUEPRINT, ["everything"])
    assert alone.slice({"mood"}).travelling == ()
    with pytest.raises(ConfigError, match="'norms' matches no parameter"):
        initial_plan("mtl", BLUEPRINT, ["norms"])


def test_scaffold_adds_control_variates_for_what_travels() -> None:
    assert initial_plan("mtl", BLUEPRINT, correction="scaffold") == with_controls(SharingPlan.shared(BLUEPRINT))
    assert initial_plan("mtl", BLUEPRINT, correction="fednova") == SharingPlan.shared(BLUEPRINT)
    plan = initial_plan("mtl", BLUEPRINT, ["head.*"], "scaffold")
    assert not any(is_control(slot.spec) for slot in plan.slots if slot.parameter.startswith("head"))
    with pytest.raises(ConfigError, match="scaffold: no parameter both travels and is trained"):
        initial_plan("mtl", BLUEPRINT, ["everything"], "scaffold")


def test_a_copy_that_no_data_of_its_task_would_train_is_refused() -> None:
    """As of the columns that later tasks of `progressive` read."""
    read = ParameterSpec("columns.mood", (2,), "float32", frozenset(BLUEPRINT.tasks), frozenset({"mood"}), "layer.0")
    blueprint = Blueprint("columns", BLUEPRINT.tasks, (*BLUEPRINT.parameters, read))
    assert initial_plan("mtl", blueprint).of("columns.mood")
    with pytest.raises(ConfigError, match=r"per_task.*task 'topic' read 'columns.mood'.*only mood.*mode: mtl"):
        initial_plan("per_task", blueprint)
