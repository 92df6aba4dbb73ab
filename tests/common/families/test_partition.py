"""What blueprints say of all families: who reads a tensor, who trains it, what a model for some tasks holds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from common.families.base import MultiTaskModel
from tests.common.families.cases import CASES, family_of
from tests.common.families.tabular import TASKS, batch, loaded


def reached(model: MultiTaskModel, loss: Tensor) -> set[str]:
    """The parameters with a gradient."""
    model.zero_grad()
    torch.autograd.backward(loss, retain_graph=True)
    return {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}


@pytest.mark.parametrize("case", CASES)
def test_a_loss_reaches_what_its_task_trains_and_nothing_else(case: str) -> None:
    family = family_of(case)
    model = loaded(family)
    model.training_pass({"a": slice(0, 20), "b": slice(20, 40)}, batch(40))  # what a model keeps of rows, it now has
    for task in TASKS:
        found = model.training_pass({task: slice(0, 40)}, batch(40))
        loss = found.outputs[task].square().sum() + (0 if found.penalty is None else found.penalty)
        parameters = [spec for spec in family.blueprint().parameters if spec.kind == "parameter"]
        assert reached(model, loss) == {spec.name for spec in parameters if task in spec.trained_by}, task


@pytest.mark.parametrize("case", CASES)
def test_in_a_joint_pass_a_loss_reaches_nothing_that_only_others_train(case: str) -> None:
    family = family_of(case)
    model = loaded(family)
    found = model.training_pass({"a": slice(0, 20), "b": slice(20, 40), "c": slice(20, 40)}, batch(40))
    for task in TASKS:
        trained = {spec.name for spec in family.blueprint().parameters if task in spec.trained_by}
        assert reached(model, found.outputs[task].square().sum()) <= trained, task


@pytest.mark.parametrize("case", CASES)
def test_a_model_for_one_task_is_that_part_of_the_model_for_all(case: str) -> None:
    family = family_of(case)
    whole = loaded(family).eval()
    for task in TASKS:
        alone = loaded(family, [task]).eval()
        assert {spec.name for spec in family.blueprint().used_by(task)} == set(alone.state_dict())
        torch.testing.assert_close(alone(task, batch()), whole(task, batch()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_read_alike_alone_and_with_those_of_other_tasks(case: str) -> None:
    model = loaded(family_of(case)).eval()
    inputs = batch(12)
    parts = {"a": slice(0, 8), "b": slice(4, 12), "c": slice(4, 12)}
    joined = model.forward_parts(parts, inputs)
    assert set(joined) == set(parts)
    for task, where in parts.items():
        alone = model(task, {"features": inputs["features"][where]})
        torch.testing.assert_close(joined[task], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gates_account_for_every_row_and_name_groups_of_the_blueprint(case: str) -> None:
    family = family_of(case)
    model = loaded(family)
    groups = {spec.group for spec in family.blueprint().parameters}
    found = model.training_pass({"a": slice(0, 8), "b": slice(8, 12), "c": slice(8, 12)}, batch(12))
    for task in TASKS:
        named, used = model.gates(task), found.gates.get(task, {})
        assert named.keys() == used.keys()
        for gate, use in used.items():
            assert set(named[gate]) <= groups
            assert use.mass.shape == (len(named[gate]),)
            assert not use.mass.requires_grad
            torch.testing.assert_close(use.mass.sum(), torch.tensor(8.0 if task == "a" else 4.0))
            assert use.entropy.shape == ()
            assert use.entropy > 0
    assert bool(model.gates("a")) == any(group.startswith("expert.") for group in groups)


@pytest.mark.parametrize("case", CASES)
def test_models_side_by_side_compute_what_each_computes_alone(case: str) -> None:
    models = [loaded(family_of(case), seed=seed).eval() for seed in (1, 2)]
    states = {name: torch.stack([m.state_dict()[name] for m in models]) for name in models[0].state_dict()}
    inputs = torch.stack([batch(9, seed)["features"] for seed in (1, 2)])
    parts = {"a": slice(0, 5), "b": slice(5, 9), "c": slice(5, 9)}

    def one(state: dict[str, Tensor], features: Tensor) -> dict[str, Tensor]:
        values = {f"model.{name}": value for name, value in state.items()}
        found: dict[str, Tensor] = torch.func.functional_call(_Pass(models[0]), values, (parts, features))
        return found

    together = torch.func.vmap(one)(states, inputs)
    for place, model in enumerate(models):
        alone = model.training_pass(parts, {"features": inputs[place]}).outputs
        for task in TASKS:
            torch.testing.assert_close(together[task][place], alone[task], rtol=0, atol=1e-5)


class _Pass(torch.nn.Module):
    """`training_pass` as the forward pass, for `functional_call`."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: Mapping[str, slice], features: Tensor) -> dict[str, Tensor]:
        return dict(self.model.training_pass(parts, {"features": features}).outputs)
