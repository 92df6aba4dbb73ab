"""Columns that pull on each other: the penalties, where they apply, and the identity with separate networks."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from common.families import family_from_description
from common.families.base import Family, MultiTaskModel, TrainingPass
from common.families.ties import TieKind
from tests.common.families.tabular import TASKS, batch, loaded, outputs, tabular

COLUMN = [5, 3]
KINDS: tuple[TieKind, ...] = ("l2", "trace_norm")


def soft(kind: TieKind = "l2", strength: float = 0.5) -> Family:
    return tabular("soft_sharing", column=COLUMN, coupling={"kind": kind, "strength": strength})


def passed(model: MultiTaskModel, *tasks: str) -> TrainingPass:
    return model.training_pass(dict.fromkeys(tasks or TASKS, slice(None)), batch())


def columns(model: MultiTaskModel) -> dict[str, list[Tensor]]:
    """Name of a tensor within a column to all tasks' copies."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("columns."):
            found.setdefault(name.split(".", 2)[2], []).append(parameter)
    return found


def test_without_strength_it_is_single_task() -> None:
    alone = tabular("single_task", column=COLUMN)
    for kind in KINDS:
        family = soft(kind, 0.0)
        assert family.blueprint().parameters == alone.blueprint().parameters
        separate, coupled = outputs(loaded(alone)), outputs(loaded(family))
        assert all(torch.equal(separate[task], coupled[task]) for task in TASKS)
        assert passed(loaded(family)).penalty is None
        assert family.ties() == ()


def test_l2_is_the_sum_of_squared_distances_over_pairs_of_tasks() -> None:
    model = loaded(soft("l2"))
    wanted = sum(
        (one - other).square().sum().item()
        for copies in columns(model).values()
        for one, other in combinations(copies, 2)
    )
    penalty = passed(model).penalty
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * wanted, rel=1e-5)


def test_trace_norm_is_the_sum_of_singular_values_layer_by_layer() -> None:
    model = loaded(soft("trace_norm"))
    tensors = list(columns(model).values())
    matrices = [torch.stack([copy.flatten() for copy in copies], dim=1) for copies in tensors]
    wanted = 0.5 * torch.stack([torch.linalg.svdvals(matrix).sum() for matrix in matrices]).sum()
    penalty = passed(model).penalty
    assert penalty is not None
    torch.testing.assert_close(penalty, wanted)
    weights = [copy for copies in tensors for copy in copies]
    torch.testing.assert_close(torch.autograd.grad(penalty, weights), torch.autograd.grad(wanted, weights))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_finite_where_columns_are_equal_or_zero(kind: TieKind) -> None:
    model = loaded(soft(kind))
    for value in (0.0, 0.3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        penalty = passed(model).penalty
        assert penalty is not None
        gradients = torch.autograd.grad(penalty, list(model.get_submodule("columns").parameters()))
        assert all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_pulls_only_the_columns_of_its_tasks(kind: TieKind) -> None:
    model = loaded(soft(kind))
    names = [name for name, _ in model.named_parameters()]
    whole, part = passed(model).penalty, passed(model, "b").penalty
    assert whole is not None
    assert part is not None
    torch.testing.assert_close(whole, part)
    gradients = [
        dict(zip(names, torch.autograd.grad(p, list(model.parameters()), allow_unused=True), strict=True))
        for p in (whole, part)
    ]
    for name in names:
        ours = gradients[1][name]
        if name.startswith("columns.b."):
            assert ours is not None
            torch.testing.assert_close(ours, gradients[0][name])
        else:
            assert ours is None


def test_in_a_federation_the_loss_has_no_penalty_and_the_server_has_the_ties() -> None:
    family = soft()
    client = family_from_description(family.describe(), family.assets(), {t: TASKS[t] for t in ("a", "b")})
    assert passed(loaded(client, ["a", "b"]), "a", "b").penalty is None
    assert client.describe() == family.describe()
    ties = family.ties()
    assert {tie.parameters for tie in ties} == {
        tuple(f"columns.{task}.layers.{layer}.{part}" for task in TASKS)
        for layer in (0, 1)
        for part in ("weight", "bias")
    }
    assert {(tie.kind, tie.step) for tie in ties} == {("l2", 0.5)}


def test_a_model_of_one_task_has_nothing_to_be_near_to() -> None:
    assert passed(loaded(soft(), ["b"]), "b").penalty is None


def test_evaluation_computes_no_penalty() -> None:
    assert passed(loaded(soft()).eval()).penalty is None


@pytest.mark.parametrize("kind", KINDS)
def test_many_models_at_once_are_what_each_is_alone(kind: TieKind) -> None:
    family = soft(kind)
    model, parts, features = loaded(family), dict.fromkeys(TASKS, slice(None)), batch()

    class Penalty(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            found = self.model.training_pass(parts, features).penalty
            assert found is not None
            return found

    values = [family.initial_values(seed) for seed in range(2)]
    stacked = {f"model.{name}": torch.stack([v[name] for v in values]).requires_grad_() for name in values[0]}
    call = torch.func.functional_call
    together = torch.func.vmap(lambda v: call(Penalty(), v, ()))(stacked)
    alone = torch.stack([call(Penalty(), {n: v[i] for n, v in stacked.items()}, ()) for i in range(2)])
    torch.testing.assert_close(together, alone)
    key = "model.columns.a.layers.0.weight"
    torch.testing.assert_close(
        torch.autograd.grad(together.sum(), stacked[key])[0], torch.autograd.grad(alone.sum(), stacked[key])[0]
    )
