"""The model as the server holds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.errors import PlanError
from common.plan import SharingPlan, Slot
from server.model_state import ModelState
from tests.server.tiny_run import BLUEPRINT, PLAN, random_values, state


def parameters() -> dict[str, Tensor]:
    return {spec.name: torch.ones(spec.shape) for spec in BLUEPRINT.parameters}


def test_version_zero_starts_every_copy_from_the_initial_value() -> None:
    model = ModelState.initial(SharingPlan.separate(BLUEPRINT), parameters())
    assert model.version == 0
    assert torch.equal(model.values["body@mood"], model.values["body@topic"])


def test_slots_of_the_client_are_not_held() -> None:
    plan = PLAN.reside(["head.mood@mood"], "client")
    model = ModelState.initial(plan, parameters())
    assert "head.mood@mood" not in model.values
    assert [t.header.slot for t in model.encoded_slice(plan.slice({"mood"}))] == [
        slot.id for slot in plan.slice({"mood"}).travelling
    ]
    assert "head.mood" not in model.for_task("mood")


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
