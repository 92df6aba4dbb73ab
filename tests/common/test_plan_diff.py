"""The diff of two plans says everything that changed, in lines grouped by layer; the table describes one plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blueprint import Blueprint, ParameterSpec
from common.errors import PlanError
from common.plan import SharingPlan
from common.plan_diff import PlanDiff, describe, diff
from tests.common.plan_strategies import blueprints, glue_blueprint, partitions, plans, spec


def split_layer(plan: SharingPlan, layer: int, groups: list[set[str]]) -> SharingPlan:
    for p in plan.blueprint.parameters:
        if p.group == f"layer.{layer}":
            plan = plan.split(p.name, groups)
    return plan


@given(st.data())
def test_a_diff_is_empty_exactly_when_nothing_changed(data: st.DataObject) -> None:
    blueprint = data.draw(blueprints())
    earlier, later = data.draw(plans(blueprint)), data.draw(plans(blueprint))
    assert bool(diff(earlier, later)) == (earlier != later)
    assert (str(diff(earlier, later)) == "no change") == (earlier == later)
    assert not diff(earlier, earlier)


@given(st.data())
def test_the_way_back_tells_splits_as_merges(data: st.DataObject) -> None:
    blueprint = data.draw(blueprints())
    earlier, later = data.draw(plans(blueprint)), data.draw(plans(blueprint))
    there, back = diff(earlier, later), diff(later, earlier)
    for one, other in ((there.split, back.merged), (there.merged, back.split), (there.regrouped, back.regrouped)):
        assert {(c.parameter, c.before, c.after) for c in one} == {(c.parameter, c.after, c.before) for c in other}


@given(st.data())
def test_one_split_is_told_as_this_split_and_nothing_else(data: st.DataObject) -> None:
    plan = data.draw(plans())
    slot = data.draw(st.sampled_from(plan.slots))
    groups = data.draw(partitions(slot.tasks))
    found = diff(plan, plan.split(slot.parameter, groups))
    if len(groups) == 1:
        assert not found
    else:
        (change,) = found.changes
        assert found.split == (change,)
        assert (change.parameter, change.before, set(change.after)) == (slot.parameter, (slot.tasks,), set(groups))


def test_a_layer_split_the_same_way_is_one_line() -> None:
    plan = SharingPlan.shared(glue_blueprint(per_layer=16))
    later = split_layer(plan, 1, [{"sst2"}, {"qqp", "stsb"}])
    assert str(diff(plan, later)) == "layer.1 (16 parameters): {qqp, sst2, stsb} -> {qqp, stsb} | {sst2}"
    assert str(diff(later, plan)) == "layer.1 (16 parameters): {qqp, stsb} | {sst2} -> {qqp, sst2, stsb}"


def test_part_of_a_layer_says_how_much_of_it() -> None:
    plan = SharingPlan.shared(glue_blueprint(per_layer=4))
    one = plan.split("encoder.layer.0.w0", [{"sst2"}])
    two = one.split("encoder.layer.0.w1", [{"sst2"}])
    assert str(diff(plan, one)) == "layer.0 (encoder.layer.0.w0): {qqp, sst2, stsb} -> {qqp, stsb} | {sst2}"
    assert str(diff(plan, two)) == "layer.0 (2 of 4 parameters): {qqp, sst2, stsb} -> {qqp, stsb} | {sst2}"


def test_what_is_neither_split_nor_merge_is_regrouped() -> None:
    plan = SharingPlan.shared(glue_blueprint()).split("encoder.layer.0.w0", [{"sst2", "qqp"}])
    later = plan.merge("encoder.layer.0.w0").split("encoder.layer.0.w0", [{"qqp", "stsb"}])
    found = diff(plan, later)
    assert len(found.regrouped) == 1
    assert str(found) == "layer.0 (encoder.layer.0.w0): {qqp, sst2} | {stsb} -> {qqp, stsb} | {sst2}"


def test_freezing_and_moving_are_told() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    frozen = plan.freeze(["encoder.embeddings.weight@qqp+sst2+stsb"])
    away = plan.reside([slot.id for slot in plan.slots if slot.spec.group == "head"], "client")
    assert str(diff(plan, frozen)) == "embeddings (1 parameter): {qqp, sst2, stsb} now frozen"
    assert str(diff(frozen, plan)) == "embeddings (1 parameter): {qqp, sst2, stsb} now trainable"
    assert str(diff(plan, away)).splitlines() == [
        f"head (2 of 6 parameters): {{{task}}} now on clients" for task in ("sst2", "qqp", "stsb")
    ]
    assert "{sst2} now on the server" in str(diff(away, plan))
    assert len(diff(plan, away).moved) == 6


def test_a_task_that_joins_is_told_with_its_head() -> None:
    plan = SharingPlan.shared(glue_blueprint(layers=1))
    grown = plan.grow(glue_blueprint("sst2 qqp stsb rte", layers=1))
    assert str(diff(plan, grown)).splitlines() == [
        "tasks: + rte",
        "embeddings (1 parameter): {qqp, sst2, stsb} -> {qqp, rte, sst2, stsb}",
        "layer.0 (4 parameters): {qqp, sst2, stsb} -> {qqp, rte, sst2, stsb}",
        "head (2 of 8 parameters): nothing -> {rte}",
    ]
    assert str(diff(grown, plan)).splitlines()[0] == "tasks: - rte"
    assert "head (2 of 8 parameters): {rte} -> nothing" in str(diff(grown, plan))


def test_a_redefined_parameter_is_told() -> None:
    def plan(p: ParameterSpec) -> SharingPlan:
        return SharingPlan.shared(Blueprint("f", ("a", "b"), (p,)))

    found = diff(plan(spec("w", "a b")), plan(spec("w", "a b", "a")))
    assert str(found) == "redefined: w"
    assert diff(plan(spec("w", "a b")), plan(spec("w", "a b", shape=(3,)))).redefined == ("w",)


def test_plans_of_two_families_are_not_compared() -> None:
    with pytest.raises(PlanError, match="'f' and 'g' have nothing to compare"):
        diff(*(SharingPlan.shared(Blueprint(family, ("a",), (spec("w", "a"),))) for family in "fg"))


def test_no_change_is_false_and_says_so() -> None:
    assert not PlanDiff()
    assert str(PlanDiff()) == "no change"


def test_the_table_has_a_line_for_each_way_of_sharing() -> None:
    plan = split_layer(SharingPlan.shared(glue_blueprint(per_layer=16)), 1, [{"sst2"}, {"qqp", "stsb"}])
    plan = plan.freeze(["encoder.embeddings.weight@qqp+sst2+stsb"])
    plan = plan.reside([slot.id for slot in plan.slice({"sst2"}).slots if slot.spec.group == "head"], "client")
    assert describe(plan).splitlines() == [
        "group       parameters  elements  slots",
        "embeddings           1        40  {qqp, sst2, stsb} (frozen)",
        "layer.0             16       256  {qqp, sst2, stsb}",
        "layer.1             16       256  {qqp, stsb} | {sst2}",
        "head                 2        10  {sst2} (on clients)",
        "head                 2        10  {qqp}",
        "head                 2        10  {stsb}",
        "the server holds 828 elements in 53 slots",
    ]


def test_the_table_says_who_trains_when_not_all_do() -> None:
    blueprint = Blueprint("f", ("a", "b"), (spec("column", "a b", "a"), spec("base", "a b", "")))
    assert "{a, b} (trained by a)" in describe(SharingPlan.shared(blueprint))
    assert "{a, b} (frozen)" in describe(SharingPlan.shared(blueprint))


@given(plans())
def test_every_parameter_is_counted_once_in_the_table(plan: SharingPlan) -> None:
    rows = [line.split() for line in describe(plan).splitlines()[1:-1]]
    assert sum(int(row[1]) for row in rows) == len(plan.blueprint.parameters)
    assert sum(int(row[2].replace(",", "")) for row in rows) == sum(p.numel for p in plan.blueprint.parameters)
