"""Shared and private features: what the discriminator sees and does, what is orthogonal, and what is left without."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, vmap

from common.families.adversarial import AdversarialModel, in_common, reversed_gradient
from tests.common.families.tabular import TASKS, batch, loaded, outputs, tabular

SIZES: dict[str, object] = {"bottom": [5, 3], "column": [4]}
PARTS = {"a": slice(0, 3), "b": slice(3, 8), "c": slice(8, 12)}


def adversarial(
    lambda_: float = 0.5, orthogonality: float = 0.0, tasks: tuple[str, ...] = tuple(TASKS)
) -> AdversarialModel:
    family = tabular("adversarial", **SIZES, adversarial=lambda_, orthogonality=orthogonality)
    return cast("AdversarialModel", loaded(family, tasks))


def penalty(model: AdversarialModel, parts: dict[str, slice], rows: int = 12, seed: int = 1) -> Tensor:
    found = model.training_pass(parts, batch(rows, seed)).penalty
    assert found is not None
    return found


def gradients(value: Tensor, model: nn.Module, part: str) -> list[Tensor]:
    parameters = list(model.get_submodule(part).parameters())
    return list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))


def test_without_penalties_it_is_a_plain_shared_private_model() -> None:
    model = adversarial(0.0)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"encoder", "columns", "heads"}
    assert not list(model.named_buffers())
    found = model.training_pass(PARTS, batch(12))
    assert found.penalty is None
    losses = [out.square().sum() for out in found.outputs.values()]
    features, plain = batch(12)["features"], []
    for task, rows in PARTS.items():
        both = torch.cat([model.encoder(features[rows]), model.columns[task](features[rows])], dim=1)
        plain.append(model.heads[task](both).square().sum())
    torch.testing.assert_close(losses, plain)
    mine, wanted = (torch.autograd.grad(values, list(model.parameters())) for values in (losses, plain))
    torch.testing.assert_close(mine, wanted)


def test_outputs_do_not_depend_on_the_penalties() -> None:
    plain, full = outputs(adversarial(0.0)), outputs(adversarial(0.5, 0.5))
    assert all(torch.equal(plain[task], full[task]) for task in TASKS)


def test_the_discriminator_learns_to_tell_tasks_and_shared_layers_learn_the_opposite() -> None:
    model, features = adversarial(0.5), batch(12)["features"]
    hidden = model.encoder(features)
    classes = torch.tensor([0] * 3 + [1] * 5 + [2] * 4)
    plain = nn.functional.cross_entropy(model.discriminator(hidden), classes)
    found = penalty(model, PARTS)
    torch.testing.assert_close(found, 0.5 * plain)
    for mine, wanted in zip(
        gradients(found, model, "discriminator"), gradients(plain, model, "discriminator"), strict=True
    ):
        torch.testing.assert_close(mine, 0.5 * wanted)
    for mine, wanted in zip(gradients(found, model, "encoder"), gradients(plain, model, "encoder"), strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(mine, -0.5 * wanted)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=5))
def test_reversal_keeps_values_to_the_bit_and_changes_the_sign_of_gradients(numbers: list[float]) -> None:
    values = torch.tensor(numbers, requires_grad=True)
    found = reversed_gradient(values)
    assert torch.equal(found, values)
    (gradient,) = torch.autograd.grad((found * 3.0).sum(), values)
    assert gradient.tolist() == [-3.0] * len(numbers)


def test_a_task_alone_has_nothing_to_be_told_from_until_others_are_known() -> None:
    model = adversarial()
    found = penalty(model, {"b": slice(None)})
    assert found == 0
    assert all(not g.any() for part in ("encoder", "discriminator") for g in gradients(found, model, part))


def test_known_tasks_are_drawn_where_they_are_absent() -> None:
    model = adversarial(1.0, tasks=("b",))
    with torch.no_grad():
        model.get_buffer("statistics.a.seen").fill_(0.5)
        model.get_buffer("statistics.a.mean").fill_(1.0)
        model.get_buffer("statistics.a.square").fill_(0.5 * (4.0 + 1e-4))  # mean 2, deviation 0.01
    found = penalty(model, {"b": slice(None)})
    logits = torch.log_softmax(model.discriminator(model.encoder(batch(12)["features"])), dim=1)
    of_draws = torch.log_softmax(model.discriminator(torch.full((3,), 2.0)), dim=0)[0]
    torch.testing.assert_close(found, -logits[:, 1].mean() - of_draws, atol=0.02, rtol=0)
    for mine, wanted in zip(
        gradients(found, model, "encoder"), gradients(-logits[:, 1].mean(), model, "encoder"), strict=True
    ):
        torch.testing.assert_close(mine, -wanted)


def test_draws_come_from_the_global_stream() -> None:
    model = adversarial()
    penalty(model, PARTS)

    def told(seed: int) -> float:
        torch.manual_seed(seed)
        return penalty(model, {"b": slice(None)}).item()

    assert told(1) == told(1) != told(2)


def test_moments_are_those_of_the_shared_features_of_a_tasks_rows() -> None:
    model = adversarial()
    for seed in range(80):
        penalty(model, {"a": slice(0, 40), "c": slice(40, 80)}, 80, seed)
    features = torch.cat([model.encoder(batch(80, seed)["features"])[:40] for seed in range(80)])
    seen = model.get_buffer("statistics.a.seen")
    mean = model.get_buffer("statistics.a.mean") / seen
    torch.testing.assert_close(mean, features.mean(0), atol=0.1, rtol=0.1)
    square = model.get_buffer("statistics.a.square") / seen
    torch.testing.assert_close(square, features.square().mean(0), atol=0.1, rtol=0.2)
    assert model.get_buffer("statistics.b.seen") == 0
    with torch.no_grad():
        model.get_buffer("statistics.b.seen").copy_(model.get_buffer("statistics.a.seen"))
        model.get_buffer("statistics.b.mean").copy_(model.get_buffer("statistics.a.mean"))
        model.get_buffer("statistics.b.square").copy_(model.get_buffer("statistics.a.square"))
    draws = model.statistics["b"].draw(20_000)  # type: ignore[operator]  # a Moments
    torch.testing.assert_close(draws.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.square().mean(0), square, atol=0.05, rtol=0.05)


def test_the_mean_of_clients_moments_is_that_of_all_their_rows() -> None:
    """Also where one client has seen more passes: what is averaged is linear in the rows."""
    clients = [adversarial(), adversarial()]
    penalty(clients[0], {"a": slice(None)}, 40, 1)
    penalty(clients[1], {"a": slice(None)}, 40, 2)
    seen, mean = (
        torch.stack([client.get_buffer(f"statistics.a.{name}") for client in clients]).mean(0)
        for name in ("seen", "mean")
    )
    both = torch.cat([clients[0].encoder(batch(40, seed)["features"]) for seed in (1, 2)])
    torch.testing.assert_close(mean / seen, both.mean(0))


def test_evaluation_moves_no_statistics_and_asks_for_no_penalty() -> None:
    model = adversarial(0.5, 0.5).eval()
    assert model.training_pass(PARTS, batch(12)).penalty is None
    assert not any(buffer.any() for buffer in model.buffers())


def test_orthogonality_is_the_mean_over_rows_of_what_features_have_in_common() -> None:
    model, features = adversarial(0.0, 0.5), batch(12)["features"]
    wanted = torch.zeros(())
    for task, rows in PARTS.items():
        shared, own = model.encoder(features[rows]), model.columns[task](features[rows])
        first, second = (nn.functional.normalize(x - x.mean(0), dim=1) for x in (shared, own))
        wanted = wanted + torch.linalg.matrix_norm(first.T @ second).square()
    torch.testing.assert_close(penalty(model, PARTS), 0.5 * wanted / 12, atol=1e-3, rtol=1e-3)


def test_features_that_vary_apart_have_nothing_in_common_and_dead_ones_no_gradient() -> None:
    one = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]], requires_grad=True)
    other = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    assert in_common(one, other).item() == pytest.approx(0, abs=1e-12)
    assert in_common(one, one.detach()).item() == pytest.approx(16, rel=1e-4)
    constant = torch.full((4, 2), 0.1, requires_grad=True)
    for rows in (4, 1):
        (gradient,) = torch.autograd.grad(in_common(constant[:rows], one[:rows].detach()), constant)
        assert gradient.abs().max() < 1e-3


def test_who_reads_and_who_trains_what() -> None:
    blueprint = tabular("adversarial", **SIZES).blueprint()
    everyone = frozenset(TASKS)
    by_part = {(p.name.split(".")[0], p.kind, p.used_by == everyone, len(p.trained_by)) for p in blueprint.parameters}
    assert by_part == {
        ("encoder", "parameter", True, 3),
        ("discriminator", "parameter", True, 3),
        ("columns", "parameter", False, 1),
        ("heads", "parameter", False, 1),
        ("statistics", "buffer", True, 1),
    }


def test_many_models_at_once_are_what_each_is_alone() -> None:
    """Statistics and draws included, as far as random numbers are the same."""
    family = tabular("adversarial", **SIZES, adversarial=0.5, orthogonality=0.5)
    model = loaded(family)

    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Tensor) -> Tensor:
            found = self.model.training_pass({"a": slice(0, 4), "c": slice(4, 9)}, {"features": features}).penalty
            assert found is not None
            return found

    values = [family.initial_values(seed) for seed in range(3)]
    stacked = {f"model.{name}": torch.stack([v[name] for v in values]) for name in values[0]}
    stacked["model.statistics.b.seen"] = torch.tensor([[0.0], [1.0], [1.0]])
    rows = torch.stack([batch(9, seed)["features"] for seed in range(3)])
    alone = []
    for number in range(3):
        torch.manual_seed(1)
        own = {name: value[number].clone() for name, value in stacked.items()}
        alone.append(functional_call(Penalty(), own, (rows[number],)))
        assert own["model.statistics.a.seen"] > 0
    torch.manual_seed(1)
    together = vmap(lambda v, x: functional_call(Penalty(), v, (x,)), randomness="same")(stacked, rows)
    torch.testing.assert_close(together, torch.stack(alone))
    assert bool((stacked["model.statistics.a.seen"] > 0).all())
