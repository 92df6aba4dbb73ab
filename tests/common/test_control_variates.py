"""Companion slots: one for each slot that clients train together, and nothing else knows of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.control_variates import control_slots, is_control, with_controls, without_controls, zero_controls
from common.plan import SharingPlan
from tests.server.tiny_run import BLUEPRINT, PLAN


def companions(plan: SharingPlan) -> set[str]:
    return {slot.id for slot in plan.slots if is_control(slot.spec)}


def test_a_companion_for_every_slot_that_is_trained_and_travels() -> None:
    trained = {slot.id.replace("@", "#control@") for slot in PLAN.slots if slot.trained_by}
    assert companions(with_controls(PLAN)) == trained
    at_home = PLAN.reside(["body@mood+topic"], "client")
    assert companions(with_controls(at_home)) == trained - {"body#control@mood+topic"}


def test_buffers_have_none() -> None:
    buffers = SharingPlan.from_dict(
        {**PLAN.to_dict(), "slots": [{**slot, "kind": "buffer"} for slot in PLAN.to_dict()["slots"]]}
    )
    assert with_controls(buffers) == buffers


@given(split=st.booleans(), tasks=st.sampled_from([("mood",), ("topic",), ("mood", "topic")]))
def test_a_slice_finds_each_slots_companion_and_is_what_it_was_without_them(
    split: bool, tasks: tuple[str, ...]
) -> None:
    plan = SharingPlan.separate(BLUEPRINT) if split else PLAN
    corrected = with_controls(plan)
    assert SharingPlan.from_dict(corrected.to_dict()) == corrected
    slice_ = corrected.slice(tasks)
    pairs = control_slots(slice_)
    assert pairs.keys() == {slot.id for slot in plan.slice(tasks).slots if slot.trained_by}
    for slot_id, control in pairs.items():
        slot = corrected.by_id[slot_id]
        assert (control.tasks, control.shape, control.trained_by) == (slot.tasks, slot.shape, slot.trained_by)
    assert without_controls(slice_) == plan.slice(tasks)
    plain = plan.slice(tasks)
    assert without_controls(plain) is plain
    assert control_slots(plain) == {}


def test_they_start_at_zero() -> None:
    zeros = zero_controls(with_controls(PLAN))
    assert zeros.keys() == {
        f"{name}#control" for name in ("table", "body", "scalar", "empty", "head.mood", "head.topic")
    }
    assert not any(value.any() for value in zeros.values())
    assert zero_controls(PLAN) == {}
