from __future__ import annotations

import dataclasses

import pytest
import torch

from client.device import choose_device
from client.slot_model import SlotModel, replica_groups
from common.errors import PlanError
from common.plan import SharingPlan, Slice
from tests.client.tiny_family import TASKS, TinyFamily, shared_slice, tiny_split, values_of

CPU = choose_device("cpu")


def test_tasks_that_share_everything_share_one_module() -> None:
    family = TinyFamily()
    model = SlotModel(family, shared_slice(family, *TASKS), list(TASKS), CPU)
    assert [replica.tasks for replica in model.replicas] == [tuple(TASKS)]


def test_a_split_gives_two_modules_and_keeps_the_shared_slot_one_parameter() -> None:
    family = TinyFamily()
    plan = SharingPlan.shared(family.blueprint()).split("hidden.weight", [["mood", "topic"], ["score"]])
    model = SlotModel(family, plan.slice(list(TASKS)), list(TASKS), CPU)
    assert [replica.tasks for replica in model.replicas] == [("mood", "topic"), ("score",)]
    one, two = (replica.module for replica in model.replicas)
    assert one.get_parameter("embeddings.weight") is two.get_parameter("embeddings.weight")
    assert one.get_buffer("norm.running_mean") is two.get_buffer("norm.running_mean")
    assert one.get_parameter("hidden.weight") is not two.get_parameter("hidden.weight")


def test_each_task_reads_its_own_copy_of_a_split_slot() -> None:
    family = TinyFamily(["mood", "topic"])
    slice_ = SharingPlan.separate(family.blueprint()).slice(["mood", "topic"])
    model = SlotModel(family, slice_, ["mood", "topic"], CPU)
    values = values_of(family, slice_)
    batch = tiny_split("mood", 5).collate(torch.arange(5).numpy())
    model.load(values, training=False)
    before = {task: model.forward(task, batch) for task in family.tasks}
    model.load(values | {"hidden.bias@mood": torch.full((4,), 3.0)}, training=False)
    after = {task: model.forward(task, batch) for task in family.tasks}
    assert not torch.equal(before["mood"], after["mood"])
    assert torch.equal(before["topic"], after["topic"])


def test_a_tied_tensor_is_replaced_under_all_its_names() -> None:
    family = TinyFamily(tied=True)
    plan = SharingPlan.shared(family.blueprint()).split("embeddings.weight", [["mood"], ["score"]])
    model = SlotModel(family, plan.slice(["mood", "score"]), ["mood", "score"], CPU)
    one, two = (replica.module for replica in model.replicas)
    names = ("hidden.weight", "again.weight")
    assert len({id(module.get_parameter(name)) for module in (one, two) for name in names}) == 1


def test_evaluation_reads_the_received_memory_and_training_a_copy() -> None:
    family = TinyFamily()
    plan = SharingPlan.shared(family.blueprint())
    frozen = plan.of("embeddings.weight")[0].id
    slice_ = plan.freeze([frozen]).slice(["mood"])
    model, values = SlotModel(family, slice_, ["mood"], CPU), values_of(family, slice_)
    model.load(values, training=False)
    assert all(model.value(slot).data_ptr() == values[slot].data_ptr() for slot in values)
    model.load(values, training=True)
    same = {slot for slot in values if model.value(slot).data_ptr() == values[slot].data_ptr()}
    assert same == {frozen}


def test_slots_of_other_tasks_cost_nothing() -> None:
    family = TinyFamily()
    model = SlotModel(family, shared_slice(family, *TASKS), ["mood"], CPU)
    assert not any("topic" in slot.parameter or "score" in slot.parameter for slot in model.slots.values())


def test_gradients_flow_only_where_the_task_may_train() -> None:
    family = TinyFamily(trained_by={"hidden.weight": frozenset({"topic"})})
    slice_ = shared_slice(family, "mood", "topic")
    model = SlotModel(family, slice_, ["mood", "topic"], CPU)
    slot = slice_.slot_of("mood", "hidden.weight").id
    for task in ("mood", "topic", "mood"):
        model.train_only(task)
        assert model.parameter(slot).requires_grad is (task == "topic")
        assert model.parameter(f"heads.{task}.weight@{task}").requires_grad


def test_values_that_do_not_fit_are_refused() -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, "mood")
    model, values = SlotModel(family, slice_, ["mood"], CPU), values_of(family, slice_)
    slot = slice_.slot_of("mood", "hidden.weight").id
    for wrong, message in (
        (torch.zeros(4, 5), r"shape \(4, 4\)"),
        (torch.zeros(4, 4, dtype=torch.float64), "float32"),
    ):
        with pytest.raises(PlanError, match=message):
            model.load(values | {slot: wrong}, training=True)
    del values[slot]
    with pytest.raises(PlanError, match="no value for slot"):
        model.load(values, training=True)


def test_a_slice_that_does_not_fit_the_family_is_refused() -> None:
    family = TinyFamily()
    slice_ = shared_slice(family, "mood")

    def without(name: str) -> Slice:
        return dataclasses.replace(slice_, slots=tuple(slot for slot in slice_.slots if slot.parameter != name))

    def changed(**fields: object) -> Slice:
        first = slice_.slots[0]
        slot = dataclasses.replace(first, spec=dataclasses.replace(first.spec, **fields))  # type: ignore[arg-type]
        return dataclasses.replace(slice_, slots=(slot, *slice_.slots[1:]))

    for broken, message in (
        (without("hidden.bias"), "lacks"),
        (changed(name="other"), "no parameter 'other'"),
        (changed(shape=(3, 4)), r"\[3, 4\]"),
        (changed(kind="buffer"), "buffer"),
    ):
        with pytest.raises(PlanError, match=message):
            SlotModel(family, broken, ["mood"], CPU)
    with pytest.raises(PlanError, match="not in the slice"):
        SlotModel(family, slice_, ["topic"], CPU)


def test_grouping_needs_agreement_with_every_member() -> None:
    family = TinyFamily()
    plan = SharingPlan.shared(family.blueprint())
    assert replica_groups(plan.slice(list(TASKS)), list(TASKS)) == (("mood", "topic", "score"),)
    plan = plan.split("hidden.weight", [["mood", "score"], ["topic"]])
    assert replica_groups(plan.slice(list(TASKS)), list(TASKS)) == (("mood", "score"), ("topic",))
    plan = plan.split("hidden.bias", [["mood"], ["topic", "score"]])
    assert replica_groups(plan.slice(list(TASKS)), list(TASKS)) == (("mood",), ("topic",), ("score",))


def test_tasks_go_together_where_one_pass_trains_them_right() -> None:
    family = TinyFamily(trained_by={"hidden.weight": frozenset({"mood", "topic"})})
    shared = SlotModel(family, shared_slice(family, *TASKS), list(TASKS), CPU)
    assert shared.together(["score", "mood", "topic"]) == [("score",), ("mood", "topic")]
    whole = TinyFamily()
    plan = SharingPlan.shared(whole.blueprint()).split("hidden.weight", [["mood", "topic"], ["score"]])
    split = SlotModel(whole, plan.slice(list(TASKS)), list(TASKS), CPU)
    assert split.together(["mood", "score", "topic"]) == [("mood", "topic"), ("score",)]


def test_several_tasks_open_what_one_of_them_trains_and_gradients_change_hands() -> None:
    family = TinyFamily(["mood", "score"], trained_by={"hidden.weight": frozenset({"mood"})})
    slice_ = shared_slice(family, "mood", "score")
    model = SlotModel(family, slice_, ["mood", "score"], CPU)
    model.load(values_of(family, slice_), training=True)
    hidden = slice_.slot_of("mood", "hidden.weight").id
    for tasks, opened in ((("score",), False), (("mood", "score"), True)):
        model.train_only(*tasks)
        assert model.parameter(hidden).requires_grad is opened
    batch = tiny_split("mood", 5).collate(torch.arange(5).numpy())
    model.forward("mood", batch).sum().backward()  # type: ignore[no-untyped-call]
    taken = model.take_gradients()
    assert hidden in taken
    assert not any("score" in slot.split("@")[0] for slot in taken)
    assert model.parameter(hidden).grad is None
    model.put_gradients({hidden: taken[hidden]})
    assert model.parameter(hidden).grad is taken[hidden]
