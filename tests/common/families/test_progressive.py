"""Columns in sequence: what they read of each other, that nothing trains an earlier one, and nothing is forgotten."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.families.base import MultiTaskModel
from common.families.progressive import FIRST_SCALE
from tests.common.families.tabular import TASKS, batch, loaded, outputs, tabular

COLUMN = [5, 3]
FAMILY = tabular("progressive", column=COLUMN, adapter=2)


def shaken() -> MultiTaskModel:
    """A model whose adapters matter, for all tasks."""
    model = loaded(FAMILY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("laterals."):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


@pytest.mark.parametrize("tower", [[], [4]])
def test_without_laterals_the_outputs_are_those_of_single_task(tower: list[int]) -> None:
    alone = outputs(loaded(tabular("single_task", column=COLUMN, tower=tower)))
    progressive = tabular("progressive", column=COLUMN, tower=tower, laterals=False)
    for task, found in outputs(loaded(progressive)).items():
        assert torch.equal(found, alone[task])
    assert progressive.blueprint().parameters == tuple(
        tabular("single_task", column=COLUMN, tower=tower).blueprint().parameters
    )


@pytest.mark.parametrize("tower", [[], [4]])
def test_a_column_and_its_tower_add_what_they_read_of_all_earlier_ones(tower: list[int]) -> None:
    model = loaded(tabular("progressive", column=COLUMN, adapter=2, tower=tower))
    values, rows = dict(model.named_parameters()), batch()["features"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ values[f"{name}.weight"].T + values.get(f"{name}.bias", torch.zeros(()))

    def lateral(task: str, layer: int, read: dict[str, list[Tensor]]) -> Tensor:
        found = torch.zeros(())
        for other, layers in read.items():
            name = f"laterals.{task}.{other}.{layer}"
            scaled = values[f"{name}.scale"] * layers[layer]
            found = found + linear(f"{name}.up", torch.relu(linear(f"{name}.down", scaled)))
        return found

    read: dict[str, list[Tensor]] = {}
    for task in TASKS:
        first = torch.relu(linear(f"columns.{task}.layers.0", rows))
        second = torch.relu(linear(f"columns.{task}.layers.1", first) + lateral(task, 0, read))
        found = linear(f"heads.{task}.{'layers.0' if tower else 'output'}", second) + lateral(task, 1, read)
        if tower:
            found = linear(f"heads.{task}.output", torch.relu(found))
        torch.testing.assert_close(model(task, batch()), found.squeeze(-1) if task == "c" else found)
        read[task] = [first, second]


def test_the_first_tasks_outputs_are_those_of_a_network_of_its_own() -> None:
    alone = loaded(tabular("single_task", column=COLUMN))
    assert torch.equal(shaken()("a", batch()), alone("a", batch()))


def test_clients_hold_the_columns_up_to_their_tasks() -> None:
    for task, columns in {"a": {"a"}, "b": {"a", "b"}, "c": {"a", "b", "c"}}.items():
        names = dict(loaded(FAMILY, [task]).named_parameters())
        assert {name.split(".")[1] for name in names if name.startswith("columns.")} == columns
        assert set(names) == {p.name for p in FAMILY.blueprint().used_by(task)}
    assert FAMILY.initial_values(1)["laterals.b.a.0.scale"].tolist() == pytest.approx([FIRST_SCALE])


def test_rows_of_several_tasks_at_once_give_what_each_gives_alone() -> None:
    model = shaken()
    parts = {"c": slice(0, 4), "a": slice(2, 6), "b": slice(0, 4)}
    together = model.training_pass(parts, batch()).outputs
    assert list(together) == list(parts)
    for task, rows in parts.items():
        torch.testing.assert_close(together[task], model(task, {"features": batch()["features"][rows]}))


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(list(TASKS)), st.integers(0, 100))
def test_training_a_task_changes_its_column_alone_and_no_earlier_output(task: str, seed: int) -> None:
    """Even an optimiser over all parameters leaves the other columns as they are, without weight decay."""
    model = loaded(FAMILY, seed=seed)
    before, told = {n: p.detach().clone() for n, p in model.named_parameters()}, outputs(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss = model.training_pass({task: slice(None)}, batch(8, seed + step)).outputs[task].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    own = {p.name for p in FAMILY.blueprint().parameters if p.trained_by == {task}}
    assert changed
    assert changed <= own
    for earlier in list(TASKS)[: list(TASKS).index(task)]:
        assert torch.equal(outputs(model)[earlier], told[earlier])


def test_tasks_trained_at_once_leave_each_others_columns_alone() -> None:
    """The loss of all has in every parameter the gradient of its own task's loss."""
    model, rows = shaken(), batch(32)
    parameters = dict(model.named_parameters())
    parts = dict.fromkeys(TASKS, slice(None))
    found = model.training_pass(parts, rows).outputs
    joint = torch.autograd.grad([out.square().sum() for out in found.values()], list(parameters.values()))
    for name, gradient in zip(parameters, joint, strict=True):
        (own,) = FAMILY.blueprint().by_name[name].trained_by
        alone = torch.autograd.grad(model(own, rows).square().sum(), parameters[name])[0]
        torch.testing.assert_close(gradient, alone)
