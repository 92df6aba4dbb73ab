"""The model as the server holds it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.control_variates import with_controls
from common.errors import PlanError
from common.messages import base_digest
from common.plan import SharingPlan, Slot
from server.model_state import ModelState
from tests.server.tiny_run import BLUEPRINT, PLAN, random_values, state


def parameters() -> dict[str, Tensor]:
    return {spec.name: torch.ones(spec.shape) for spec in BLUEPRINT.parameters}


def test_version_zero_starts_every_copy_from_the_initial_value() -> None:
    model = ModelState.initial(SharingPlan.separate(BLUEPRINT), parameters())
    assert model.version == 0
    assert torch.equal(model.values["body@mood"], model.values["body@topic"])


def test_of_slots_of_the_client_the_first_value_is_held_and_sent_but_is_no_part_of_a_trained_model() -> None:
    plan = PLAN.reside(["head.mood@mood"], "client")
    model = ModelState.initial(plan, parameters())
    assert [t.header.slot for t in model.encoded_slice(plan.slice({"mood"}))] == [
        slot.id for slot in plan.slice({"mood"}).slots
    ]
    assert "head.mood" not in model.for_task("mood")
    assert model.for_task("mood", first_values=True).keys() == model.for_task("mood").keys() | {"head.mood"}


def test_control_variates_start_at_zero_and_are_no_part_of_a_model() -> None:
    plan = with_controls(PLAN)
    model = ModelState.initial(plan, parameters())
    assert not model.values["body#control@mood+topic"].any()
    assert model.for_task("mood").keys() == ModelState.initial(PLAN, parameters()).for_task("mood").keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.pop("body@mood+topic"), "do not fit the plan"),
        (lambda values: values.update(odd=torch.ones(1)), "do not fit the plan"),
        (lambda values: values.update({"body@mood+topic": torch.ones(5, 3)}), r"is \(3, 5\) float32"),
        (lambda values: values.update({"body@mood+topic": torch.ones(3, 5).double()}), "float64"),
    ],
)
def test_values_that_are_not_the_plans_are_refused(change: Callable[[dict[str, Tensor]], object], words: str) -> None:
    values = random_values()
    change(values)
    with pytest.raises(PlanError, match=words):
        ModelState(PLAN, values, 0)


def test_a_task_sees_what_its_forward_pass_reads() -> None:
    model = state(SharingPlan.separate(BLUEPRINT))
    found = model.for_task("mood")
    assert found.keys() == {"table", "body", "fixed", "scalar", "empty", "head.mood"}
    assert found["body"] is model.values["body@mood"]


def test_a_slot_that_stays_keeps_its_encoded_form() -> None:
    model = state()
    model.encode()
    before = {slot_id: model.encoded(slot_id) for slot_id in model.values}
    model.advance(lambda slot, value: value + 1 if slot.parameter == "body" else value)
    assert model.version == 1
    for slot_id, encoded in before.items():
        assert (model.encoded(slot_id) is encoded) == (not slot_id.startswith("body"))
    assert model.encoded("body@mood+topic").header.checksum != before["body@mood+topic"].header.checksum


def test_when_one_slot_cannot_move_none_has_moved() -> None:
    model = state()
    model.encode()
    before = {slot_id: (value, model.encoded(slot_id)) for slot_id, value in model.values.items()}

    def step(slot: Slot, value: Tensor) -> Tensor:
        if slot.parameter == "head.topic":
            raise PlanError("no")
        return value + 1

    with pytest.raises(PlanError, match="no"):
        model.advance(step)
    assert model.version == 0
    for slot_id, (value, encoded) in before.items():
        assert model.values[slot_id] is value
        assert model.encoded(slot_id) is encoded


def test_the_next_version_may_freeze_other_slots_and_keeps_what_was_encoded() -> None:
    model = state()
    model.encode()
    before, digest = model.encoded("body@mood+topic"), model.digest_of(PLAN.slice({"mood"}))
    frozen = PLAN.freeze(["head.mood@mood"])
    trained: list[bool] = []

    def step(slot: Slot, value: Tensor) -> Tensor:
        trained.append(slot.frozen)
        return value

    model.advance(step, frozen)
    assert (model.version, model.plan) == (1, frozen)
    assert not any(trained), "the fold sees the plan that was trained under"
    assert model.encoded("body@mood+topic") is before
    assert model.digest_of(frozen.slice({"mood"})) == digest


@pytest.mark.parametrize(
    "other", [SharingPlan.separate(BLUEPRINT), PLAN.reside(["body@mood+topic"], "client")], ids=["split", "moved"]
)
def test_the_next_version_has_the_same_slots(other: SharingPlan) -> None:
    model = state()
    with pytest.raises(PlanError, match="frozen slots only"):
        model.advance(lambda _, value: value + 1, other)
    assert (model.version, model.plan) == (0, PLAN)


def test_the_digest_of_a_slice_tells_its_values() -> None:
    model, same, other = state(seed=1), state(seed=1), state(seed=2)
    mood, both = PLAN.slice({"mood"}), PLAN.slice({"mood", "topic"})
    assert re.fullmatch("[0-9a-f]{32}", model.digest_of(mood))
    assert model.digest_of(mood) == same.digest_of(mood), "equal values, equal digests"
    assert model.digest_of(mood) != other.digest_of(mood)
    assert model.digest_of(mood) != model.digest_of(both)
    assert model.digest_of(mood) == model.digest_of(PLAN.slice({"mood"})), "not only of the same object"


def test_the_digest_follows_the_values_of_its_slice_and_no_others() -> None:
    model = state()
    mood, topic = PLAN.slice({"mood"}), PLAN.slice({"topic"})
    before = model.digest_of(mood), model.digest_of(topic)
    model.advance(lambda slot, value: value + 1 if slot.parameter == "head.mood" else value)
    after = model.digest_of(mood), model.digest_of(topic)
    assert after[0] != before[0]
    assert after[1] == before[1], "the version is another, these values are not"
    model.advance(lambda slot, value: value - 1 if slot.parameter == "head.mood" else value)
    model.advance(lambda _, value: value.clone())
    assert torch.equal(model.values["body@mood+topic"], state().values["body@mood+topic"])
    assert model.digest_of(topic) == before[1], "equal values again, in memory of their own"
    assert model.version == 3


def test_a_digest_is_that_of_the_headers_that_travel() -> None:
    model = state()
    mood = PLAN.slice({"mood"})
    assert model.digest_of(mood) == base_digest(tensor.header for tensor in model.encoded_slice(mood))


def test_a_step_that_fails_changes_no_digest() -> None:
    model = state()
    mood = PLAN.slice({"mood"})
    before = model.digest_of(mood)

    def step(slot: Slot, value: Tensor) -> Tensor:
        if slot.parameter == "head.topic":  # one of the last
            raise PlanError("no")
        return value + 1

    with pytest.raises(PlanError, match="no"):
        model.advance(step)
    assert model.digest_of(mood) == before
    model.advance(lambda _, value: value + 1)
    assert model.version == 1
    assert model.digest_of(mood) != before
    assert all(torch.equal(value, state().values[slot] + 1) for slot, value in model.values.items())
