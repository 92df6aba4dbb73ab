"""What blueprints say of all families: who reads a tensor, who trains it, what a model for some tasks holds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from common.families.base import MultiTaskModel
from tests.common.families.cases import CASES, TASKS, drawn, rows, tabular


@pytest.mark.parametrize("case", CASES)
def test_a_loss_reaches_what_its_task_trains_and_nothing_else(case: str) -> None:
    family = tabular(**CASES[case])
    model = drawn(family).train()
    parameters = dict(model.named_parameters())
    parts = {"one": slice(0, 20), "two": slice(20, 40), "three": slice(20, 40)}
    torch.manual_seed(0)
    found = model.training_pass(parts, rows(40))
    for task in TASKS:
        loss = found.outputs[task].square().sum()
        model.zero_grad()
        torch.autograd.backward(loss, retain_graph=True)
        reached = {name for name, tensor in parameters.items() if tensor.grad is not None and tensor.grad.any()}
        trained = {spec.name for spec in family.blueprint().parameters if task in spec.trained_by}
        assert reached == trained, task


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("task", TASKS)
def test_a_model_for_one_task_is_that_part_of_the_model_for_all(case: str, task: str) -> None:
    family = tabular(**CASES[case])
    alone, whole = drawn(family, task), drawn(family)
    used = [spec.name for spec in family.blueprint().used_by(task)]
    assert sorted(used) == sorted(alone.state_dict())
    expected = whole(task, rows())
    assert expected.shape == ((12,) if task == "two" else (12, TASKS[task].num_outputs))
    torch.testing.assert_close(alone(task, rows()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_read_alike_alone_and_with_those_of_other_tasks(case: str) -> None:
    model = drawn(tabular(**CASES[case]))
    batch = rows(12)
    parts = {"one": slice(0, 8), "two": slice(4, 12), "three": slice(4, 12)}
    joined = model.forward_parts(parts, batch)
    assert list(joined) == list(parts)
    for task, where in parts.items():
        alone = model(task, {"features": batch["features"][where]})
        torch.testing.assert_close(joined[task], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gates_account_for_every_row_and_name_groups_of_the_blueprint(case: str) -> None:
    family = tabular(**CASES[case])
    model = drawn(family).train()
    groups = {spec.group for spec in family.blueprint().parameters}
    found = model.training_pass({"one": slice(0, 8), "two": slice(8, 12), "three": slice(8, 12)}, rows(12))
    for task in TASKS:
        named, used = model.gates(task), found.gates.get(task, {})
        assert named.keys() == used.keys()
        for gate, use in used.items():
            assert set(named[gate]) <= groups
            assert use.mass.shape == (len(named[gate]),)
            assert not use.mass.requires_grad
            torch.testing.assert_close(use.mass.sum(), torch.tensor(8.0 if task == "one" else 4.0))
            assert use.entropy.shape == ()
            assert use.entropy > 0
    has_experts = any(group.startswith("expert.") for group in groups)
    assert has_experts == bool(model.gates("one"))


@pytest.mark.parametrize("case", CASES)
def test_models_side_by_side_compute_what_each_computes_alone(case: str) -> None:
    family = tabular(**CASES[case])
    models = [drawn(family, seed=seed) for seed in (1, 2)]
    states = {name: torch.stack([m.state_dict()[name] for m in models]) for name in models[0].state_dict()}
    inputs = torch.stack([rows(9, seed)["features"] for seed in (1, 2)])
    parts = {"one": slice(0, 5), "two": slice(5, 9), "three": slice(5, 9)}

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
