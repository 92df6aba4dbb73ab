from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.aggregation import BlockPool, DenseDelta, SlotUpdate, WeightedSum, weighted_sum
from tests.server.aggregation.made_up import update


def reference(value: Tensor, updates: list[tuple[float, Tensor]]) -> Tensor:
    total = value.double()
    for weight, delta in updates:
        total = total + weight * delta.double()
    return total.to(value.dtype)


@given(st.lists(st.integers(1, 4), max_size=3), st.lists(st.floats(-2, 2), min_size=1, max_size=5), st.integers(0, 99))
def test_a_slot_moves_by_the_weighted_sum_of_its_deltas(shape: list[int], weights: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator)
    before = value.clone()
    deltas = [torch.randn(shape, generator=generator) for _ in weights]
    result = WeightedSum().reduce(
        value, [update(f"c{k}", weight, delta) for k, (weight, delta) in enumerate(zip(weights, deltas, strict=True))]
    )
    torch.testing.assert_close(result, reference(value, list(zip(weights, deltas, strict=True))), rtol=1e-6, atol=1e-6)
    assert result.dtype is value.dtype
    assert torch.equal(value, before)
    assert not np.shares_memory(result.numpy(), value.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float64 hides no bit of the sum
@pytest.mark.parametrize("size", [1, 31, 4097, 100_003])
def test_neither_threads_nor_blocks_change_a_bit(
    size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(size)
    value = torch.randn(size, generator=generator, dtype=dtype)
    updates = [update(f"c{k}", 1 / (3 + k), torch.randn(size, generator=generator)) for k in range(4)]
    results = []
    for threads, block in [(1, 2**17), (2, 2**17), (3, 1000), (1, 1000), (2, 65_536), (3, 7 if size < 5000 else 999)]:
        monkeypatch.setattr(weighted_sum, "BLOCK", block)
        result = WeightedSum(BlockPool(threads)).reduce(value, updates)
        results.append(hashlib.sha256(result.numpy().tobytes()).hexdigest())
    assert len(set(results)) == 1


def test_small_terms_survive_beside_large_ones() -> None:
    """In float32 each 1.0 would vanish beside 1e8."""
    value = torch.tensor([1e8])
    updates = [update(f"c{k:02}", 1.0, torch.tensor([1.0])) for k in range(16)]
    assert WeightedSum().reduce(value, [*updates, update("z", 1.0, torch.tensor([-1e8]))]).item() == 16.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_keeps_the_type_of_the_slot(dtype: torch.dtype) -> None:
    value, delta = torch.randn(9).to(dtype), torch.randn(9).to(dtype)
    result = WeightedSum().reduce(value, [update("a", 0.5, delta)])
    assert result.dtype is dtype
    assert torch.equal(result, reference(value, [(0.5, delta)]))


def test_an_error_in_a_thread_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(_first: int, _last: int) -> Tensor:
        raise OSError("torn")

    monkeypatch.setattr(weighted_sum, "BLOCK", 4)
    with pytest.raises(OSError, match="torn"):
        WeightedSum(BlockPool(2)).reduce(torch.ones(9), [SlotUpdate("a", 1.0, 1, DenseDelta((9,), torn))])


def test_one_pinned_value() -> None:
    value, one, two = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0]), torch.tensor([0.0, 8.0])
    assert WeightedSum().reduce(value, [update("a", 0.25, one), update("b", 0.75, two)]).tolist() == [2.0, 8.0]
