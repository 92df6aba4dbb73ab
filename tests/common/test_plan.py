"""The sharing plan: invariants under every operation, what a client gets, where values come from."""

from __future__ import annotations

import json
from fractions import Fraction

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.blueprint import Blueprint, ParameterSpec
from common.errors import PlanError
from common.plan import SharingPlan, Slice, Slot
from tests.common.plan_strategies import blueprints, glue_blueprint, partitions, plans, spec


def assert_each_task_finds_one_slot(plan: SharingPlan) -> None:
    """The invariant that everything else stands on, stated without the plan's own look-ups."""
    for parameter in plan.blueprint.parameters:
        for task in plan.blueprint.tasks:
            copies = [slot for slot in plan.slots if slot.parameter == parameter.name and task in slot.tasks]
            assert len(copies) == (task in parameter.used_by)


def grown_blueprint(blueprint: Blueprint, joins: frozenset[str], new: str = "newcomer") -> Blueprint:
    """The blueprint with one more task, which uses (and trains) the named parameters and a head of its own."""
    parameters = [
        ParameterSpec(
            p.name, p.shape, p.dtype, p.used_by | {new}, p.trained_by | {new}, p.group, p.kind
        ) if p.name in joins else p
        for p in blueprint.parameters
    ]  # fmt: skip
    return Blueprint(blueprint.family, (*blueprint.tasks, new), (*parameters, spec(f"heads.{new}", new, group="head")))


# --- invariants -------------------------------------------------------------------------------------------


@given(plans())
def test_every_task_that_uses_a_parameter_finds_exactly_one_slot(plan: SharingPlan) -> None:
    assert_each_task_finds_one_slot(plan)


@given(blueprints())
def test_shared_has_one_slot_per_parameter_and_separate_one_per_task(blueprint: Blueprint) -> None:
    shared, separate = SharingPlan.shared(blueprint), SharingPlan.separate(blueprint)
    assert_each_task_finds_one_slot(shared)
    assert_each_task_finds_one_slot(separate)
    assert len(shared.slots) == len(blueprint.parameters)
    assert all(len(slot.tasks) == 1 for slot in separate.slots)


@given(plans(), st.randoms(use_true_random=False))
def test_slots_are_in_blueprint_order_however_they_were_given(plan: SharingPlan, random: object) -> None:
    slots = list(plan.slots)
    random.shuffle(slots)  # type: ignore[attr-defined]  # hypothesis hands out a random.Random
    again = SharingPlan(plan.blueprint, tuple(slots))
    assert again == plan
    order = [p.name for p in plan.blueprint.parameters]
    positions = [order.index(slot.parameter) for slot in plan.slots]
    assert positions == sorted(positions)


@given(plans())
def test_slot_ids_are_unique_and_name_the_parameter_and_the_tasks(plan: SharingPlan) -> None:
    assert len(plan.by_id) == len(plan.slots)
    for slot_id, slot in plan.by_id.items():
        parameter, _, tasks = slot_id.rpartition("@")
        assert parameter == slot.parameter
        assert frozenset(tasks.split("+")) == slot.tasks


def test_a_plan_that_leaves_a_task_out_is_refused() -> None:
    shared = spec("w", "a b")
    with pytest.raises(PlanError, match=r"tasks \['b'\] have no slot of 'w'"):
        SharingPlan(Blueprint("f", ("a", "b"), (shared,)), (Slot(shared, frozenset("a")),))


def test_a_plan_with_two_copies_for_one_task_is_refused() -> None:
    shared = spec("w", "a b")
    slots = (Slot(shared, frozenset("ab")), Slot(shared, frozenset("b")))
    with pytest.raises(PlanError, match=r"tasks \['b'\] have two slots of 'w'"):
        SharingPlan(Blueprint("f", ("a", "b"), (shared,)), slots)


def test_a_plan_with_a_slot_of_another_blueprint_is_refused() -> None:
    shared, wider = spec("w", "a"), spec("w", "a", shape=(3,))
    with pytest.raises(PlanError, match="not of a parameter of the blueprint"):
        SharingPlan(Blueprint("f", ("a",), (shared,)), (Slot(wider, frozenset("a")),))


def test_a_slot_needs_tasks_that_use_its_parameter() -> None:
    with pytest.raises(PlanError, match="has no task"):
        Slot(spec("w", "a"), frozenset())
    with pytest.raises(PlanError, match=r"held for \['b'\], which do not use"):
        Slot(spec("w", "a"), frozenset("ab"))


# --- split and merge --------------------------------------------------------------------------------------


@given(st.data())
def test_split_then_merge_gives_the_plan_back(data: st.DataObject) -> None:
    plan = data.draw(plans())
    slot = data.draw(st.sampled_from(plan.slots))
    groups = data.draw(partitions(slot.tasks))
    split = plan.split(slot.parameter, groups)
    assert_each_task_finds_one_slot(split)
    assert {s.tasks for s in split.of(slot.parameter)} >= set(groups)
    assert split.merge(slot.parameter, slot.tasks) == plan


@given(st.data())
def test_split_touches_no_other_parameter(data: st.DataObject) -> None:
    plan = data.draw(plans())
    chosen = data.draw(st.sampled_from(plan.blueprint.parameters))
    split = plan.split(chosen.name, data.draw(partitions(chosen.used_by)))
    others = [slot for slot in plan.slots if slot.parameter != chosen.name]
    assert [slot for slot in split.slots if slot.parameter != chosen.name] == others


@given(st.data())
def test_split_never_joins_what_was_apart(data: st.DataObject) -> None:
    plan = data.draw(plans())
    chosen = data.draw(st.sampled_from(plan.blueprint.parameters))
    split = plan.split(chosen.name, data.draw(partitions(chosen.used_by)))
    before = plan.of(chosen.name)
    for slot in split.of(chosen.name):
        (parent,) = [old for old in before if slot.tasks <= old.tasks]
        assert (slot.residence, slot.frozen) == (parent.residence, parent.frozen)


@given(blueprints())
def test_splitting_every_parameter_by_task_is_separate_and_merging_all_is_shared(blueprint: Blueprint) -> None:
    shared, separate = SharingPlan.shared(blueprint), SharingPlan.separate(blueprint)
    split, merged = shared, separate
    for p in blueprint.parameters:
        split = split.split(p.name, [{task} for task in p.used_by])
        merged = merged.merge(p.name)
    assert split == separate
    assert merged == shared


def test_tasks_in_no_group_stay_together() -> None:
    plan = SharingPlan.shared(glue_blueprint()).split("encoder.layer.1.w0", [{"sst2"}])
    assert [sorted(slot.tasks) for slot in plan.of("encoder.layer.1.w0")] == [["qqp", "stsb"], ["sst2"]]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"sst2", "qqp"}, {"qqp"}], "overlap"),
        ([{"mnli"}], r"unknown tasks \['mnli'\]; the plan has"),
        ([set()], "no task given"),
    ],
)
def test_impossible_groups_are_refused(groups: list[set[str]], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        SharingPlan.shared(glue_blueprint()).split("encoder.layer.0.w0", groups)


def test_a_head_cannot_be_split_for_tasks_that_do_not_use_it() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    with pytest.raises(PlanError, match=r"tasks \['qqp'\] do not use 'heads.sst2.bias'"):
        plan.split("heads.sst2.bias", [{"sst2"}, {"qqp"}])
    with pytest.raises(PlanError, match=r"none of \['qqp'\] uses 'heads.sst2.bias'"):
        plan.merge("heads.sst2.bias", {"qqp"})


def test_an_unknown_parameter_is_named() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    for operation in (plan.of, plan.merge, lambda name: plan.split(name, [{"sst2"}])):
        with pytest.raises(PlanError, match=r"no parameter 'encoder\.layer\.9'"):
            operation("encoder.layer.9")


def test_slots_in_different_places_have_no_common_value_to_merge_to() -> None:
    plan = SharingPlan.shared(glue_blueprint()).split("encoder.layer.0.w0", [{"sst2"}])
    apart = plan.reside(["encoder.layer.0.w0@sst2"], "client")
    with pytest.raises(PlanError, match="live in different places"):
        apart.merge("encoder.layer.0.w0")


def test_a_merged_slot_is_frozen_only_where_all_its_parts_were() -> None:
    name = "encoder.layer.0.w0"
    split = SharingPlan.shared(glue_blueprint()).split(name, [{"sst2"}])
    one = split.freeze([f"{name}@sst2"])
    both = one.freeze([f"{name}@qqp+stsb"])
    assert [slot.frozen for slot in one.merge(name).of(name)] == [False]
    assert [slot.frozen for slot in both.merge(name).of(name)] == [True]


# --- slices -----------------------------------------------------------------------------------------------


@given(st.data())
def test_a_slice_is_all_that_its_tasks_use_and_nothing_else(data: st.DataObject) -> None:
    plan = data.draw(plans())
    tasks = data.draw(st.frozensets(st.sampled_from(plan.blueprint.tasks), min_size=1))
    slice_ = plan.slice(tasks)
    for task in tasks:
        needed = {p.name for p in plan.blueprint.parameters if task in p.used_by}
        assert set(slice_.for_task(task)) == needed
        for name in needed:
            assert slice_.slot_of(task, name) == slice_.for_task(task)[name]
            assert task in slice_.slot_of(task, name).tasks
    assert all(slot.tasks & tasks for slot in slice_.slots)
    foreign_heads = {f"heads.{task}" for task in set(plan.blueprint.tasks) - tasks}
    assert not foreign_heads & {slot.parameter for slot in slice_.slots}


@given(st.data())
def test_the_slices_of_all_tasks_together_are_the_plan(data: st.DataObject) -> None:
    plan = data.draw(plans())
    together = {slot for task in plan.blueprint.tasks for slot in plan.slice({task}).slots}
    assert together == set(plan.slots)
    assert plan.slice(plan.blueprint.tasks).slots == plan.slots


@given(st.data())
def test_only_server_slots_travel_and_only_own_unfrozen_ones_train(data: st.DataObject) -> None:
    plan = data.draw(plans())
    slice_ = plan.slice({data.draw(st.sampled_from(plan.blueprint.tasks))})
    assert set(slice_.travelling) == {slot for slot in slice_.slots if slot.residence == "server"}
    assert set(slice_.trainable) == {
        slot for slot in slice_.slots if not slot.frozen and slot.spec.trained_by & slot.tasks & slice_.tasks
    }


@given(st.data())
def test_slices_round_trip_through_msgpack_and_json(data: st.DataObject) -> None:
    slice_ = _any_slice(data)
    assert Slice.from_dict(msgpack.unpackb(msgpack.packb(slice_.to_dict()))) == slice_
    assert Slice.from_dict(json.loads(json.dumps(slice_.to_dict()))) == slice_


def _any_slice(data: st.DataObject) -> Slice:
    plan = data.draw(plans())
    return plan.slice(data.draw(st.frozensets(st.sampled_from(plan.blueprint.tasks), min_size=1)))


def test_a_slice_of_unknown_or_no_tasks_is_refused() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    with pytest.raises(PlanError, match="unknown tasks"):
        plan.slice({"mnli"})
    with pytest.raises(PlanError, match="no task given"):
        plan.slice([])
    with pytest.raises(PlanError, match=r"no slot of 'heads\.qqp\.bias' for task 'sst2'"):
        plan.slice({"sst2"}).slot_of("sst2", "heads.qqp.bias")


# --- where values come from -------------------------------------------------------------------------------


@given(st.data())
def test_a_new_value_is_the_mean_over_its_tasks_of_what_they_had(data: st.DataObject) -> None:
    blueprint = data.draw(blueprints())
    earlier, later = data.draw(plans(blueprint)), data.draw(plans(blueprint))
    origins = later.origins(earlier)
    assert origins.keys() == {slot.id for slot in later.slots if slot.residence == "server"}
    for slot_id, sources in origins.items():
        had = [
            old.id
            for task in later.by_id[slot_id].tasks
            for old in earlier.of(later.by_id[slot_id].parameter)
            if task in old.tasks and old.residence == "server"
        ]
        assert sources == {old: float(Fraction(had.count(old), len(had))) for old in had}
        assert not sources or sum(sources.values()) == pytest.approx(1.0, abs=1e-15)


@given(plans())
def test_an_unchanged_plan_keeps_every_value(plan: SharingPlan) -> None:
    assert plan.origins(plan) == {s.id: {s.id: 1.0} for s in plan.slots if s.residence == "server"}


@given(st.data())
def test_each_part_of_a_split_starts_from_the_slot_it_was_cut_from(data: st.DataObject) -> None:
    plan = data.draw(plans())
    slot = data.draw(st.sampled_from(plan.slots))
    split = plan.split(slot.parameter, data.draw(partitions(slot.tasks)))
    for part_id, sources in split.origins(plan).items():
        part = split.by_id[part_id]
        (parent,) = [old for old in plan.of(part.parameter) if part.tasks <= old.tasks]
        assert sources == {parent.id: 1.0}


def test_a_merged_slot_starts_from_the_mean_weighted_by_tasks() -> None:
    name = "encoder.layer.1.w0"
    split = SharingPlan.shared(glue_blueprint()).split(name, [{"sst2"}, {"qqp", "stsb"}])
    merged = split.merge(name)
    assert merged.origins(split)[f"{name}@qqp+sst2+stsb"] == {f"{name}@qqp+stsb": 2 / 3, f"{name}@sst2": 1 / 3}


def test_a_slot_that_comes_back_from_the_clients_starts_from_its_initial_value() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    (slot,) = plan.of("encoder.layer.0.LayerNorm.weight")
    away = plan.reside([slot.id], "client")
    assert slot.id not in away.origins(plan)
    assert plan.origins(away)[slot.id] == {}


# --- freeze and reside ------------------------------------------------------------------------------------


@given(st.data())
def test_freezing_and_thawing_changes_training_alone(data: st.DataObject) -> None:
    plan = data.draw(plans())
    ids = data.draw(st.frozensets(st.sampled_from([slot.id for slot in plan.slots])))
    frozen = plan.freeze(ids)
    assert [slot.id for slot in frozen.slots] == [slot.id for slot in plan.slots]
    assert all(frozen.by_id[slot_id].trained_by == frozenset() for slot_id in ids)
    assert all(frozen.by_id[slot.id] == slot for slot in plan.slots if slot.id not in ids)
    thawed = frozen.freeze(ids, frozen=False)
    assert all(thawed.by_id[i].trained_by == plan.by_id[i].spec.trained_by & plan.by_id[i].tasks for i in ids)


@given(st.data())
def test_moving_there_and_back_gives_the_plan_back(data: st.DataObject) -> None:
    plan = SharingPlan.shared(data.draw(blueprints()))
    ids = data.draw(st.frozensets(st.sampled_from([slot.id for slot in plan.slots])))
    away = plan.reside(ids, "client")
    assert {slot.id for slot in away.slots if slot.residence == "client"} == ids
    assert away.reside(ids, "server") == plan


def test_unknown_slots_are_named() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    with pytest.raises(PlanError, match=r"no slots \['w@sst2'\]"):
        plan.freeze(["w@sst2"])
    with pytest.raises(PlanError, match=r"no slots \['w@sst2'\]"):
        plan.reside(["w@sst2"], "client")


# --- a task joins -----------------------------------------------------------------------------------------


@given(st.data())
def test_a_joining_task_changes_nothing_for_the_others(data: st.DataObject) -> None:
    plan = data.draw(plans())
    names = [p.name for p in plan.blueprint.parameters]
    joins = data.draw(st.frozensets(st.sampled_from(names)))
    grown = plan.grow(grown_blueprint(plan.blueprint, joins))
    assert_each_task_finds_one_slot(grown)
    for old in plan.slots:
        (new,) = [slot for slot in grown.of(old.parameter) if slot.tasks & old.tasks]
        assert new.tasks - {"newcomer"} == old.tasks
        assert (new.residence, new.frozen) == (old.residence, old.frozen)
        if new.residence == "server":
            assert grown.origins(plan)[new.id] == {old.id: 1.0}
    for name in joins:
        (host,) = [slot for slot in grown.of(name) if "newcomer" in slot.tasks]
        assert len(host.tasks) == 1 + max(len(slot.tasks) for slot in plan.of(name))
    assert grown.origins(plan)["heads.newcomer@newcomer"] == {}


def test_a_task_that_joins_a_separate_plan_can_stand_alone_in_the_same_transition() -> None:
    plan = SharingPlan.separate(glue_blueprint("sst2 qqp"))
    grown = plan.grow(glue_blueprint("sst2 qqp stsb"))
    for p in grown.blueprint.parameters:
        if "stsb" in p.used_by:
            grown = grown.split(p.name, [{"stsb"}])
    assert grown == SharingPlan.separate(glue_blueprint("sst2 qqp stsb"))
    origins = grown.origins(plan)
    assert origins["encoder.embeddings.weight@stsb"] == {}
    assert origins["encoder.embeddings.weight@sst2"] == {"encoder.embeddings.weight@sst2": 1.0}


def test_growth_that_loses_or_changes_something_is_refused() -> None:
    plan = SharingPlan.shared(glue_blueprint())
    with pytest.raises(PlanError, match="does not lose them"):
        plan.grow(glue_blueprint("sst2 qqp"))
    with pytest.raises(PlanError, match="lacks"):
        plan.grow(glue_blueprint("sst2 qqp stsb rte", layers=1))
    wider = Blueprint("transformer", ("a", "b"), (spec("w", "a b", shape=(3,)),))
    with pytest.raises(PlanError, match="parameter 'w' changed"):
        SharingPlan.shared(Blueprint("transformer", ("a",), (spec("w", "a"),))).grow(wider)


# --- as data ----------------------------------------------------------------------------------------------


@given(plans())
def test_plans_round_trip_through_msgpack_and_json(plan: SharingPlan) -> None:
    for again in (msgpack.unpackb(msgpack.packb(plan.to_dict())), json.loads(json.dumps(plan.to_dict()))):
        assert SharingPlan.from_dict(again) == plan
        assert SharingPlan.from_dict(again).digest == plan.digest


@given(st.data())
def test_digests_are_equal_exactly_when_plans_are(data: st.DataObject) -> None:
    blueprint = data.draw(blueprints())
    one, two = data.draw(plans(blueprint)), data.draw(plans(blueprint))
    assert (one.digest == two.digest) == (one == two)
    assert one.freeze([s.id for s in one.slots]).digest == one.freeze([s.id for s in one.slots]).digest


@pytest.mark.parametrize("part", ["shape", "dtype", "group", "kind", "family", "trained_by"])
def test_whatever_differs_in_the_blueprint_changes_the_digest(part: str) -> None:
    base = {"shape": (2,), "dtype": "float32", "group": "head", "kind": "parameter", "trained_by": frozenset("a")}
    other = {"shape": (2, 1), "dtype": "float16", "group": "pooler", "kind": "buffer", "trained_by": frozenset()}
    plans_: list[SharingPlan] = []
    for chosen in (base, base if part == "family" else base | {part: other[part]}):
        parameter = ParameterSpec(name="w", used_by=frozenset("ab"), **chosen)  # type: ignore[arg-type]  # see `base`
        family = "g" if part == "family" and plans_ else "f"
        plans_.append(SharingPlan.shared(Blueprint(family, ("a", "b"), (parameter,))))
    assert plans_[0] != plans_[1]
    assert plans_[0].digest != plans_[1].digest


def _broken(**changes: object) -> dict[str, object]:
    data = SharingPlan.shared(Blueprint("f", ("a", "b"), (spec("w", "a b"),))).to_dict()
    return data | {"slots": [data["slots"][0] | changes]}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({}, id="empty"),
        pytest.param({"format": 2}, id="future format"),
        pytest.param({"format": 1}, id="no slots"),
        pytest.param({"format": 1, "family": "f", "tasks": ["a"], "slots": [{}]}, id="empty slot"),
        pytest.param({"format": 1, "family": "f", "tasks": ["a"], "slots": 3}, id="slots no list"),
        pytest.param({"format": 1, "family": "f", "tasks": ["a"], "slots": [3]}, id="slot no map"),
        pytest.param([], id="list"),
        pytest.param(None, id="nothing"),
        pytest.param(_broken(tasks=["a"]), id="task left out"),
        pytest.param(_broken(tasks="ab"), id="tasks in one string"),
        pytest.param(_broken(tasks=[1, 2]), id="tasks that are numbers"),
        pytest.param(_broken(used_by=["a", "b", "c"]), id="unknown task"),
        pytest.param(_broken(residence="moon"), id="no such residence"),
        pytest.param(_broken(kind="gift"), id="no such kind"),
        pytest.param(_broken(shape=[-1]), id="negative size"),
        pytest.param(_broken(shape=["2"]), id="size in words"),
        pytest.param(_broken(shape=2), id="shape no list"),
        pytest.param(_broken(dtype=None), id="no dtype"),
        pytest.param(_broken(frozen="no"), id="frozen in words"),
    ],
)
def test_data_that_is_no_plan_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        SharingPlan.from_dict(data)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_a_damaged_plan_is_refused_or_is_a_valid_plan(data: st.DataObject) -> None:
    damaged = data.draw(plans()).to_dict()
    target = data.draw(st.sampled_from([damaged, *damaged["slots"]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(plain)
    try:
        plan = SharingPlan.from_dict(damaged)
    except PlanError:
        return
    assert_each_task_finds_one_slot(plan)
    assert SharingPlan.from_dict(plan.to_dict()) == plan
