"""Plans by round: what is open when, what never is, and which configurations are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blueprint import Blueprint, ParameterSpec
from common.errors import ConfigError
from common.plan import SharingPlan
from server.freezing_config import FreezingConfig
from server.unfreezing import Schedule, SlotGroup, Stage, plan_of_round, resolve_schedule, trained_tasks
from tests.common.families.cases import family_of
from tests.common.families.tiny import text_family
from tests.common.plan_strategies import glue_blueprint, plans

GLUE = SharingPlan.shared(glue_blueprint(layers=3))
SPLIT = SharingPlan.separate(glue_blueprint(layers=3))


def schedule_of(plan: SharingPlan = GLUE, **freezing: Any) -> Schedule:  # noqa: ANN401  # YAML values
    return resolve_schedule(FreezingConfig.model_validate(freezing), plan, "my.yaml")


def open_groups(schedule: Schedule, round_id: int, plan: SharingPlan = GLUE) -> list[str]:
    """The blueprint groups of which something is trained in a round."""
    held = [slot.spec.group for slot in plan_of_round(plan, schedule, round_id).slots if slot.trained_by]
    return list(dict.fromkeys(held))


def test_without_a_section_everything_is_trained() -> None:
    assert plan_of_round(GLUE, schedule_of(), 1) == GLUE


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("everything", []),
        (["backbone"], ["head"]),
        (["head:sst2"], ["embeddings", "layer.0", "layer.1", "layer.2", "head"]),
        (["embeddings", "layers:0-1"], ["layer.2", "head"]),
        (["encoder.*"], ["head"]),
    ],
)
def test_the_scenarios_that_people_ask_for(freeze: Any, trained: list[str]) -> None:  # noqa: ANN401  # YAML values
    schedule = schedule_of(freeze=freeze)
    assert open_groups(schedule, 1) == open_groups(schedule, 9) == trained


def test_one_head_is_frozen_and_its_task_still_trains_the_encoder() -> None:
    plan = plan_of_round(GLUE, schedule_of(freeze=["head:sst2"]), 1)
    assert {slot.id for slot in plan.slots if slot.frozen} == {"heads.sst2.weight@sst2", "heads.sst2.bias@sst2"}
    assert trained_tasks(plan) == {"sst2", "qqp", "stsb"}


def test_stages_add_up_and_what_freeze_names_stays() -> None:
    stages = [
        {"from_round": 1, "open": "heads"},
        {"from_round": 3, "open": ["upper"]},
        {"from_round": 4, "open": "everything"},
    ]
    schedule = schedule_of(freeze=["layers:0"], schedule=stages)
    assert [open_groups(schedule, r) for r in (1, 2, 3, 4)] == [
        ["head"],
        ["head"],
        ["layer.2", "head"],
        ["embeddings", "layer.1", "layer.2", "head"],
    ]


def test_a_stage_may_end_where_the_next_begins() -> None:
    stages = [
        {"from_round": 1, "until_round": 2, "open": ["own:sst2"]},
        {"from_round": 3, "until_round": 5, "open": ["own:qqp", "layers:2"]},
        {"from_round": 5, "open": "upper"},
    ]
    schedule = schedule_of(schedule=stages)
    assert [open_groups(schedule, r) for r in (2, 5, 6)] == [["head"], ["layer.2", "head"], ["layer.2"]]
    assert trained_tasks(plan_of_round(SPLIT, schedule_of(SPLIT, schedule=stages[:2]), 2)) == {"sst2"}
    assert trained_tasks(plan_of_round(GLUE, schedule, 1)) == {"sst2"}


def test_after_the_last_stage_has_ended_nothing_is_open() -> None:
    schedule = schedule_of(schedule=[{"from_round": 1, "until_round": 2, "open": "heads"}])
    assert open_groups(schedule, 3) == []


def test_rounds_between_stages_with_nothing_open_are_refused() -> None:
    stages = [{"from_round": 1, "until_round": 2, "open": "heads"}, {"from_round": 4, "open": "backbone"}]
    with pytest.raises(ConfigError, match=r"schedule\.0\.until_round: after round 2 no stage has anything open"):
        schedule_of(schedule=stages)


def test_a_stage_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"until_round \(1\) is before from_round \(2\)"):
        FreezingConfig.model_validate({"schedule": [{"from_round": 2, "until_round": 1, "open": "heads"}]})


def test_gradual_opens_a_layer_at_a_time_from_the_top() -> None:
    schedule = schedule_of(gradual={"rounds_per_layer": 2})
    assert [len(open_groups(schedule, r)) for r in range(1, 12)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    assert open_groups(schedule, 3) == ["layer.2", "head"]
    assert open_groups(schedule, 8) == ["layer.0", "layer.1", "layer.2", "head"]


def test_gradual_opens_experts_and_gates_on_an_encoder_with_the_heads_and_without_one_after_them() -> None:
    text = SharingPlan.shared(text_family(layers=1, experts={"number": 2}).blueprint())
    schedule = schedule_of(text, gradual={})
    assert open_groups(schedule, 1, text) == ["head", "expert.0", "expert.1", "gate"]
    assert "pooler" in open_groups(schedule, 2, text)
    tabular = SharingPlan.shared(family_of("omoe").blueprint())
    schedule = schedule_of(tabular, gradual={})
    assert open_groups(schedule, 1, tabular) == ["head"]
    assert "expert.0" in open_groups(schedule, 2, tabular)


def test_gradual_spends_no_round_on_what_is_frozen_anyway() -> None:
    schedule = schedule_of(freeze=["heads", "layers:1"], gradual={})
    assert [open_groups(schedule, r) for r in (1, 2, 3)] == [
        ["layer.2"],
        ["layer.0", "layer.2"],
        ["embeddings", "layer.0", "layer.2"],
    ]


def test_a_choice_by_task_where_each_has_slots_of_its_own() -> None:
    schedule = schedule_of(SPLIT, freeze=[{"match": "backbone", "tasks": ["sst2"]}])
    frozen = {next(iter(s.tasks)) for s in plan_of_round(SPLIT, schedule, 1).slots if s.frozen}
    assert frozen == {"sst2"}
    assert trained_tasks(plan_of_round(SPLIT, schedule, 1)) == {"sst2", "qqp", "stsb"}


def test_stopped_tasks_take_with_them_what_is_theirs_alone() -> None:
    def frozen(stopped: str, plan: SharingPlan = GLUE, *, goes_on: bool = False) -> set[str]:
        found = plan_of_round(plan, Schedule(), 5, frozenset(stopped.split()), shared_goes_on=goes_on)
        return {slot.id for slot in found.slots if slot.frozen}

    assert frozen("sst2") == {"heads.sst2.weight@sst2", "heads.sst2.bias@sst2"}
    assert frozen("sst2 qqp stsb") == set(GLUE.by_id)
    heads = {slot.id for slot in GLUE.slots if slot.spec.group == "head"}
    assert frozen("sst2 qqp stsb", goes_on=True) == heads
    assert frozen("qqp", SPLIT) == {slot.id for slot in SPLIT.slots if slot.tasks == {"qqp"}}


def buffers() -> SharingPlan:
    def spec(name: str, kind: Any, group: str) -> ParameterSpec:  # noqa: ANN401  # a literal
        both = frozenset({"a", "b"})
        return ParameterSpec(name, (2,), "float32", both, both, group, kind)

    names = [
        ("bn.weight", "parameter"),
        ("bn.bias", "parameter"),
        ("bn.running_mean", "buffer"),
        ("free.mean", "buffer"),
    ]
    specs = [spec(f"encoder.{name}", kind, "layer.0") for name, kind in names]
    return SharingPlan.shared(Blueprint("with statistics", ("a", "b"), (*specs, spec("top.weight", "parameter", "x"))))


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (["encoder.bn.weight", "encoder.bn.bias"], ["weight", "bias", "running_mean"]),
        (["encoder.bn.weight"], ["weight"]),
        (["encoder.bn.running_mean"], ["running_mean"]),
        (["encoder.free.*"], ["mean"]),
    ],
)
def test_statistics_go_with_the_parameters_beside_them(freeze: list[str], frozen: list[str]) -> None:
    plan = plan_of_round(buffers(), schedule_of(buffers(), freeze=freeze), 1)
    assert [slot.parameter.rpartition(".")[2] for slot in plan.slots if slot.frozen] == frozen


def test_who_trains_statistics_alone_has_nothing_to_train() -> None:
    assert (
        trained_tasks(plan_of_round(buffers(), schedule_of(buffers(), freeze=["top.weight", "encoder.bn.*"]), 1))
        == set()
    )


@pytest.mark.parametrize(
    ("freezing", "words"),
    [
        (
            {"freeze": ["head:mnli"]},
            "my.yaml: freezing.freeze.0: 'head:mnli': no such task; this run has qqp, sst2, stsb",
        ),
        ({"freeze": ["heads", "pooler"]}, "my.yaml: freezing.freeze.1: 'pooler' matches no parameter of this model"),
        (
            {"freeze": [{"match": "backbone", "tasks": ["sst2"]}]},
            "my.yaml: freezing.freeze.0.tasks: backbone has no slot for sst2 alone, only for {qqp, sst2, stsb}",
        ),
        ({"freeze": [{"match": "heads", "tasks": ["x"]}]}, "my.yaml: freezing.freeze.0.tasks: no task x; this run has"),
        (
            {"freeze": ["heads"], "schedule": [{"from_round": 1, "open": "heads"}, {"from_round": 2, "open": "upper"}]},
            "my.yaml: freezing.schedule.0: opens nothing that can be trained from round 1 on",
        ),
        (
            {"schedule": [{"from_round": 1, "open": "backbone"}, {"from_round": 4, "open": "upper"}]},
            "my.yaml: freezing.schedule.1: opens nothing that can be trained from round 4 on and was not open before",
        ),
        (
            {"freeze": ["everything"], "gradual": {}},
            "my.yaml: freezing: freeze leaves nothing for a schedule to open",
        ),
    ],
)
def test_what_fits_no_model_or_leaves_nothing_to_train_is_refused_by_key(freezing: Any, words: str) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError) as caught:
        schedule_of(**freezing)
    assert words in str(caught.value)


@st.composite
def schedules(draw: st.DrawFn, plan: SharingPlan) -> Schedule:
    """Any schedule for a plan, sensible or not."""
    names = [parameter.name for parameter in plan.blueprint.parameters]
    tasks = st.none() | st.frozensets(st.sampled_from(plan.blueprint.tasks), min_size=1)
    groups = st.lists(st.builds(SlotGroup, st.frozensets(st.sampled_from(names), min_size=1), tasks), max_size=3)
    rounds = sorted(draw(st.sets(st.integers(1, 6), max_size=3)))
    return Schedule(tuple(draw(groups)), tuple(Stage(number, tuple(draw(groups))) for number in rounds))


@given(st.data())
def test_plans_of_rounds_open_more_and_more_and_follow_from_the_round_alone(data: st.DataObject) -> None:
    plan = data.draw(plans())
    schedule = data.draw(schedules(plan))
    by_round = [plan_of_round(plan, schedule, number) for number in range(1, 8)]
    never = {slot.id for slot in plan.slots if any(group.holds(slot) for group in schedule.freeze)}
    for before, after in pairwise(by_round):
        assert {s.id for s in after.slots if s.frozen} <= {s.id for s in before.slots if s.frozen}
    for number, found in enumerate(by_round, start=1):
        assert [(s.id, s.residence) for s in found.slots] == [(s.id, s.residence) for s in plan.slots]
        assert never <= {s.id for s in found.slots if s.frozen}
        assert plan_of_round(by_round[-number], schedule, number) == found, "whatever plan it starts from"


@given(st.data())
def test_a_task_that_stops_trains_nothing_of_its_own_and_takes_nothing_from_others(data: st.DataObject) -> None:
    plan = data.draw(plans())
    stopped = data.draw(st.frozensets(st.sampled_from(plan.blueprint.tasks)))
    before, after = plan_of_round(plan, Schedule(), 3), plan_of_round(plan, Schedule(), 3, stopped)
    for slot in after.slots:
        beside = slot.spec.kind == "buffer"
        assert slot.frozen == (slot.tasks <= stopped) or beside
        assert slot.trained_by <= before.by_id[slot.id].trained_by
