"""One gate for all tasks."""

from __future__ import annotations

import pytest
import torch

from tests.common.families.tabular import TASKS, batch, loaded, outputs, tabular


def test_with_one_expert_the_outputs_are_those_of_shared_bottom() -> None:
    bottom = loaded(tabular("shared_bottom", bottom=[6, 5])).state_dict()
    model = loaded(tabular("omoe", experts={"number": 1, "hidden": [6, 5]}))
    names = {name: name.replace("experts.0.", "encoder.") for name in model.state_dict() if name != "gate.weight"}
    assert set(names.values()) == set(bottom)
    model.load_state_dict({name: bottom[other] for name, other in names.items()}, strict=False)
    expected = outputs(loaded(tabular("shared_bottom", bottom=[6, 5])))
    for task, found in outputs(model).items():
        torch.testing.assert_close(found, expected[task], rtol=0, atol=1e-6)


def test_experts_and_gate_are_everybodys_and_each_expert_is_a_group() -> None:
    blueprint = tabular("omoe", experts={"number": 2, "hidden": [3]}, gate={"bias": True}).blueprint()
    groups = {spec.name: spec.group for spec in blueprint.parameters if spec.group != "head"}
    assert groups == {
        "experts.0.layers.0.weight": "expert.0",
        "experts.0.layers.0.bias": "expert.0",
        "experts.1.layers.0.weight": "expert.1",
        "experts.1.layers.0.bias": "expert.1",
        "gate.weight": "gate",
        "gate.bias": "gate",
    }
    assert all(blueprint.by_name[name].trained_by == set(TASKS) for name in groups)


def test_balance_is_that_of_all_rows_of_the_pass() -> None:
    model = loaded(tabular("omoe", experts={"number": 3, "hidden": [3]}, gate={"balance": 0.5}))
    found = model.training_pass({"a": slice(0, 4), "b": slice(4, 6)}, batch())
    mass = found.gates["a"]["gate"].mass + found.gates["b"]["gate"].mass
    assert found.penalty is not None
    assert found.penalty.item() == pytest.approx(0.5 * (mass.var(correction=0) / mass.mean() ** 2).item(), rel=1e-5)
