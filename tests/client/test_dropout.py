from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from client.dropout import DropoutStream, StreamDropout, use_stream


def dropping(p: float, seed: int = 1) -> StreamDropout:
    stream = DropoutStream()
    stream.restart(seed)
    return StreamDropout(p, stream).train()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_probability(p: float) -> None:
    count = 400_000
    dropped = int((dropping(p)(torch.ones(count)) == 0).sum())
    assert abs(dropped - p * count) < 5 * math.sqrt(count * p * (1 - p))


@given(p=st.floats(0, 1), size=st.integers(0, 70))
@example(p=1e-6, size=1)
@example(p=1 - 1e-6, size=70)
def test_kept_elements_are_scaled_so_that_the_expectation_is_kept(p: float, size: int) -> None:
    module = dropping(p)
    inputs = torch.arange(1.0, size + 1)
    outputs = module(inputs)
    level = round(p * 65536)
    scale = 65536 / (65536 - level) if level < 65536 else 0.0
    assert outputs.shape == inputs.shape
    for before, after in zip(inputs.tolist(), outputs.tolist(), strict=True):
        assert after == 0 or after == pytest.approx(before * scale, rel=1e-6)


def test_neighbours_and_rows_are_dropped_independently() -> None:
    kept = (dropping(0.5)(torch.ones(1000, 256)) != 0).double()
    for other in (kept.roll(1, dims=1), kept.roll(1, dims=0), kept.roll(4, dims=1)):
        agreement = float((kept == other).double().mean())
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(kept.numel())


def test_masks_follow_from_the_seed_and_go_on_from_call_to_call() -> None:
    module = dropping(0.3, seed=4)
    first, second = module(torch.ones(64)), module(torch.ones(64))
    assert not torch.equal(first, second)
    again = dropping(0.3, seed=4)
    assert torch.equal(again(torch.ones(64)), first)
    assert torch.equal(again(torch.ones(64)), second)
    assert not torch.equal(dropping(0.3, seed=5)(torch.ones(64)), first)


def test_a_mask_neither_looks_at_nor_touches_torchs_own_stream() -> None:
    state = torch.get_rng_state()
    dropping(0.3)(torch.ones(64))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gradient_passes_where_the_value_did() -> None:
    inputs = torch.ones(256, requires_grad=True)
    outputs = dropping(0.4)(inputs)
    outputs.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, outputs.detach())


def test_bfloat16_stays_bfloat16() -> None:
    assert dropping(0.4)(torch.ones(8, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_evaluation_and_probability_zero_change_nothing() -> None:
    inputs = torch.randn(9)
    assert torch.equal(dropping(0.4).eval()(inputs), inputs)
    assert torch.equal(dropping(0.0)(inputs), inputs)


def test_each_dropout_of_a_module_is_replaced_and_draws_from_the_one_stream() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25)), nn.ReLU())
    stream = DropoutStream()
    use_stream(model, stream)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p) for module in found] == [(StreamDropout, 0.5), (StreamDropout, 0.25)]
    assert set(model.state_dict()) == {"1.0.weight", "1.0.bias"}
    stream.restart(2)
    one = model(torch.ones(3, 4))
    stream.restart(2)
    assert torch.equal(model(torch.ones(3, 4)), one)


def test_bits_are_those_of_sfc64() -> None:
    """Pinned, as another order of bits would change every run's results without a word."""
    stream = DropoutStream()
    stream.restart(1)
    wanted = np.random.SFC64(1).random_raw(2).view(np.int16)[:6].tolist()
    assert stream.draw(torch.Size((2, 3))).flatten().tolist() == wanted
