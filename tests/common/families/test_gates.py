"""Gates over experts: dense, sparse, noisy, limited, balanced."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from common.families.expert_config import GateConfig, OMoEConfig
from common.families.experts import ExpertStack, mixed, read
from common.families.gates import Gate

EXPERTS = 5


def gate(experts: int = EXPERTS, seed: int = 1, **section: object) -> Gate:
    """A gate over three inputs, in training."""
    torch.manual_seed(seed)
    return Gate(3, experts, GateConfig.model_validate(section))


def values(rows: int, seed: int = 1, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(
    top_k=st.none() | st.integers(1, EXPERTS),
    noise=st.booleans(),
    rows=st.integers(1, 20),
    seed=st.integers(0, 99),
    training=st.booleans(),
)
def test_the_shares_of_a_row_sum_to_one_and_no_more_than_top_k_have_any(
    top_k: int | None, noise: bool, rows: int, seed: int, training: bool
) -> None:
    module = gate(top_k=top_k, noise=noise and top_k is not None, seed=seed).train(training)
    weights, _ = module.products()
    routing = module.route(values(rows, seed) @ torch.cat(weights).T)
    torch.testing.assert_close(routing.shares.sum(1), torch.ones(rows))
    assert ((routing.shares > 0).sum(1) <= (top_k or EXPERTS)).all()
    if top_k != 1:
        assert torch.equal(routing.weights, routing.shares)


@settings(max_examples=25, deadline=None)
@given(top_k=st.integers(1, EXPERTS), capacity=st.floats(0.1, 2), rows=st.integers(1, 30), seed=st.integers(0, 99))
def test_no_expert_takes_more_rows_than_its_capacity(top_k: int, capacity: float, rows: int, seed: int) -> None:
    limited = gate(top_k=top_k, capacity=capacity, seed=seed)
    plain = gate(top_k=top_k, seed=seed)
    plain.load_state_dict(limited.state_dict())
    wanted = plain.route(values(rows, seed) @ plain.weight.T).shares
    taken = limited.route(values(rows, seed) @ limited.weight.T).shares
    most = math.ceil(capacity * rows * top_k / EXPERTS)
    assert ((taken > 0).sum(0) <= most).all()
    first = (wanted > 0).cumsum(0) <= most
    assert torch.equal(taken > 0, (wanted > 0) & first), "the first rows of the batch are those that are taken"
    sums = taken.sum(1)
    assert torch.isclose(sums, torch.ones(())).logical_or(sums == 0).all()


def test_capacity_is_counted_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA refuses a running sum of floats under `training.deterministic`, the default."""
    counted: list[torch.dtype] = []
    running_sum = torch.Tensor.cumsum

    def noting(values: Tensor, dim: int) -> Tensor:
        counted.append(values.dtype)
        return running_sum(values, dim)

    monkeypatch.setattr(torch.Tensor, "cumsum", noting)
    gate(top_k=2, capacity=1.0)(values(6))
    assert counted == [torch.int32]


def test_mixed_precision_counts_all_rows() -> None:
    module = gate(4, top_k=1, capacity=2.0)
    taken = module.route(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.bfloat16).repeat(1000, 1)).shares
    assert taken.sum(0).tolist() == [500, 0, 0, 0]


def test_in_evaluation_no_row_is_turned_away_and_nothing_is_drawn() -> None:
    module = gate(top_k=2, capacity=0.1, noise=True, balance=1.0).eval()
    plain = gate(top_k=2)
    plain.load_state_dict({"weight": module.weight})
    assert torch.equal(module(values(30)), plain(values(30)))
    assert module.route(values(30) @ module.weight.T).penalty is None


def test_a_row_that_no_expert_takes_gets_zeros_and_finite_gradients() -> None:
    module = gate(top_k=2, capacity=0.05)
    weights = module(values(20))
    assert (weights.sum(1) == 0).any()
    torch.autograd.backward(weights[:, 0].square().sum())
    assert module.weight.grad is not None
    assert module.weight.grad.isfinite().all()


def test_all_experts_of_a_sparse_gate_are_the_dense_gate() -> None:
    dense, sparse = gate(), gate(top_k=EXPERTS)
    limited = gate(top_k=EXPERTS, capacity=1.0)
    assert torch.equal(dense(values(20)), sparse(values(20)))
    torch.testing.assert_close(dense(values(20)), limited(values(20)))


def test_a_single_expert_is_multiplied_by_its_weight_among_all_so_that_the_gate_learns() -> None:
    dense, switch = gate(), gate(top_k=1)
    weights = switch(values(20))
    torch.testing.assert_close(weights.amax(1), dense(values(20)).amax(1))
    torch.autograd.backward(weights.sum())
    assert switch.weight.grad is not None
    assert switch.weight.grad.abs().max() > 1e-3


def test_noise_moves_choices_by_the_learnt_width_and_its_weights_get_a_gradient() -> None:
    noisy = gate(top_k=2, noise=True)
    assert noisy.noise is not None
    with torch.no_grad():
        noisy.noise.weight.zero_()
    weights, biases = noisy.products()
    products = values(2000) @ torch.cat(weights).T + torch.cat(biases)
    clean = products[:, :EXPERTS]
    torch.manual_seed(3)
    found = noisy.route(products).weights
    torch.manual_seed(3)
    drawn = clean + math.log(2) * torch.randn(clean.shape)
    kept = drawn.topk(2).values
    torch.testing.assert_close(found.topk(2).values, torch.softmax(kept, dim=1))
    torch.autograd.backward(found.square().sum())
    assert noisy.noise.weight.grad is not None
    assert noisy.noise.weight.grad.any()


@pytest.mark.parametrize("section", [{}, {"top_k": 2}, {"top_k": 1}])
def test_the_penalty_is_least_where_experts_are_used_equally(section: dict[str, Any]) -> None:
    module = gate(4, balance=2.0, **section)
    equal = module.route(100 * torch.eye(4).repeat(3, 1)).penalty
    unequal = module.route(100 * torch.eye(4)[[0, 0, 0, 1]]).penalty
    assert equal is not None
    assert unequal is not None
    least = 2.0 if section.get("top_k") == 1 else 0.0
    assert equal.item() == pytest.approx(least, abs=1e-6)
    # Switch: shares 3/4 and 1/4 of rows and weights. Importance: 3, 1, 0, 0.
    expected = 2.0 * (4 * (0.75**2 + 0.25**2) if least else (9 + 1) / 4 - 1)
    assert unequal.item() == pytest.approx(expected, rel=1e-4)


def test_noise_capacity_and_balance_can_be_computed_for_many_models_at_once() -> None:
    module = gate(top_k=2, noise=True, capacity=1.0, balance=0.1)

    def penalty(products: Tensor) -> Tensor:
        routing = module.route(products)
        assert routing.penalty is not None
        return routing.penalty + routing.use().entropy

    found = torch.func.vmap(penalty, randomness="different")(torch.zeros(3, 10, 2 * EXPERTS))
    assert found.shape == (3,)
    assert len(set(found.tolist())) == 3


@pytest.mark.parametrize("widths", [[4], [4, 3]])
def test_experts_side_by_side_are_each_expert_alone(widths: list[int]) -> None:
    torch.manual_seed(1)
    one, other, module = ExpertStack(2, 3, widths), ExpertStack(3, 3, widths), gate()
    (of_one, of_other), (products,) = read(values(6), [one, other], [module], torch.nn.Identity())
    found = mixed(module.route(products).weights, [of_one, of_other])

    def alone(expert: torch.nn.Module) -> Tensor:
        hidden = values(6)
        for layer in expert.layers:  # type: ignore[union-attr]  # an Expert
            hidden = torch.relu(layer(hidden))
        return hidden

    each = torch.stack([alone(expert) for expert in (*one, *other)], dim=1)
    torch.testing.assert_close(found, (module(values(6)).unsqueeze(-1) * each).sum(1))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"gate": {"noise": True}}, "noise is for gates that choose"),
        ({"gate": {"capacity": 1.0}}, "capacity is for gates that choose"),
        ({"gate": {"top_k": 9}}, "top_k is 9, and there is a gate over only 8"),
        ({"experts": {"number": 257}}, "a gate over 257 experts; allowed are 256"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(section: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OMoEConfig.model_validate({"family": "omoe", "numeric": {"a": {}}, **section})
