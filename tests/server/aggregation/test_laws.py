"""What every aggregator keeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.errors import PlanError
from server.aggregation import (
    Aggregator,
    BlockPool,
    CoordinateMedian,
    DenseDelta,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    RowsDelta,
    SlotUpdate,
    TrimmedMean,
    WeightedSum,
    distances,
    rows,
    weighted_sum,
)
from tests.server.aggregation.made_up import EVERY, ROBUST, moved, update, updates_of

every = pytest.mark.parametrize("aggregator", EVERY.values(), ids=EVERY)
robust = pytest.mark.parametrize("aggregator", ROBUST.values(), ids=ROBUST)
weights = st.lists(st.floats(0.01, 2), min_size=1, max_size=7)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@every
@given(order=st.permutations(range(7)), seed=st.integers(0, 99))
def test_the_order_of_arrival_does_not_change_a_bit(aggregator: Aggregator, order: list[int], seed: int) -> None:
    value = normal(seed, 50, dtype=torch.float64)  # float64 hides no bit of the sum
    # Rounded, so that elements and scores tie.
    deltas = [normal(seed + k, 50).mul(4).round() for k in range(7)]
    updates = updates_of(deltas, [0.1 + k for k in range(7)])
    expected = aggregator.reduce(value, updates)
    assert torch.equal(aggregator.reduce(value, [updates[k] for k in order]), expected)


@every
@given(weights=weights, seed=st.integers(0, 99))
def test_equal_deltas_move_the_slot_by_the_sum_of_the_weights(
    aggregator: Aggregator, weights: list[float], seed: int
) -> None:
    delta = normal(seed, 4, 3) / 10  # shorter than the bound of norm_clipping_1
    value = normal(seed + 1, 4, 3)
    found = aggregator.reduce(value, updates_of([delta] * len(weights), weights))
    torch.testing.assert_close(found, value + sum(weights) * delta, rtol=1e-5, atol=1e-5)


@every
@given(weight=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_one_client_moves_the_slot_by_its_own_weighted_delta(aggregator: Aggregator, weight: float, seed: int) -> None:
    value, delta = normal(seed, 9), normal(seed + 1, 9) / 10
    alone = [update("a", weight, delta)]
    assert torch.equal(aggregator.reduce(value, alone), WeightedSum().reduce(value, alone))


@every
def test_doubling_all_weights_doubles_the_move(aggregator: Aggregator) -> None:
    deltas = [normal(k, 30, dtype=torch.float64) for k in range(6)]
    for delta in deltas:
        delta[::3] = 0
    shares = [0.05, 0.1, 0.15, 0.2, 0.2, 0.3]
    once, twice = (moved(aggregator, updates_of(deltas, [f * w for w in shares])) for f in (1, 2))
    torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "method", sorted(EVERY.keys() - {"norm_clipping", "norm_clipping_1"})
)  # these measure from zero
def test_what_all_deltas_have_in_common_comes_through(method: str) -> None:
    aggregator = EVERY[method]
    deltas = [normal(k, 30, dtype=torch.float64) for k in range(6)]
    shift = normal(9, 30, dtype=torch.float64) * 100
    near, far = (moved(aggregator, updates_of([d + s for d in deltas])) for s in (torch.zeros(30), shift))
    torch.testing.assert_close(far, near + shift, rtol=1e-8, atol=1e-8)


MAKE: dict[str, Callable[[BlockPool], Aggregator]] = {
    "weighted_sum": WeightedSum,
    "coordinate_median": CoordinateMedian,
    "trimmed_mean": lambda pool: TrimmedMean(0.2, pool),
    "krum": lambda pool: Krum(1, pool),
    "multi_krum": lambda pool: MultiKrum(1, pool=pool),
    "geometric_median": lambda pool: GeometricMedian(pool=pool),
    "norm_clipping": lambda pool: NormClipping(pool=pool),
}


@pytest.mark.parametrize("method", MAKE)
@pytest.mark.parametrize("size", [1, 31, 100_003])
def test_threads_change_no_bit_and_blocks_no_value(method: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    value = normal(size, size, dtype=torch.float64)
    updates = updates_of([normal(k, size) for k in range(5)], [1 / (3 + k) for k in range(5)])
    one, two, three = (MAKE[method](BlockPool(threads)).reduce(value, updates) for threads in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    for module, name in [(rows, "WIDEST"), (distances, "BLOCK"), (weighted_sum, "BLOCK")]:
        monkeypatch.setattr(module, name, 999)
    torch.testing.assert_close(MAKE[method](BlockPool(2)).reduce(value, updates), one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clients", [3, 40])
@pytest.mark.parametrize("method", ["coordinate_median", "trimmed_mean", "geometric_median", "krum"])
def test_memory_for_rows_is_bounded_however_many_clients(
    method: str, clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ELEMENTS", 4000)
    asked: list[int] = []

    def remembered(tensor: Tensor) -> DenseDelta:
        def read(first: int, last: int) -> Tensor:
            asked.append(last - first)
            return tensor[first:last]

        return DenseDelta((len(tensor),), read)

    updates = [SlotUpdate(f"c{k:02}", 1.0, 1, remembered(normal(k, 9000))) for k in range(clients)]
    # Where a weighted sum follows, it reads one delta at a time, in blocks of its own.
    monkeypatch.setattr(weighted_sum, "BLOCK", 100)
    MAKE[method](BlockPool(1)).reduce(torch.zeros(9000), updates)
    assert max(asked) * clients <= 4000


@every
def test_rows_give_the_same_bits_as_the_dense_delta(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in [(rows, "WIDEST"), (distances, "BLOCK"), (weighted_sum, "BLOCK")]:
        monkeypatch.setattr(module, name, 1000)
    value = normal(0, 300, 17)
    sparse, dense = [], []
    for k in range(5):
        indices = torch.randperm(300, generator=torch.Generator().manual_seed(k))[: 60 + 40 * k].sort().values
        held = normal(k, 60 + 40 * k, 17)
        full = torch.zeros(300, 17)
        full[indices] = held
        sparse.append(SlotUpdate(f"c{k}", 0.2, 1, RowsDelta.of((300, 17), indices, held)))
        dense.append(SlotUpdate(f"c{k}", 0.2, 1, DenseDelta.of(full)))
    found = aggregator.reduce(value, sparse)
    assert torch.equal(found, aggregator.reduce(value, dense))
    assert not torch.equal(found, value)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_a_new_tensor_of_the_slots_type(aggregator: Aggregator, dtype: torch.dtype) -> None:
    value = normal(0, 9).to(dtype)
    before = value.clone()
    result = aggregator.reduce(value, updates_of([normal(k, 9).to(dtype) for k in range(4)]))
    assert result.dtype is dtype
    assert torch.isfinite(result).all()
    assert torch.equal(value, before)
    assert result.data_ptr() != value.data_ptr()


@every
@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
@pytest.mark.parametrize("clients", [1, 2, 5])
def test_scalars_and_empty_slots_work(aggregator: Aggregator, shape: tuple[int, ...], clients: int) -> None:
    result = aggregator.reduce(torch.ones(shape), updates_of([torch.full(shape, 0.5)] * clients))
    torch.testing.assert_close(result, torch.full(shape, 1.5))


@every
def test_a_value_that_is_not_contiguous_works(aggregator: Aggregator) -> None:
    value, delta = normal(0, 4, 5).t(), normal(1, 5, 4) / 10
    result = aggregator.reduce(value, updates_of([delta] * 3))
    torch.testing.assert_close(result, value + delta)


@every
def test_clients_that_changed_nothing_leave_the_slot_as_it_is(aggregator: Aggregator) -> None:
    value = normal(0, 20)
    assert torch.equal(aggregator.reduce(value, updates_of([torch.zeros(20)] * 4)), value)


@every
def test_what_cannot_be_averaged_is_refused(aggregator: Aggregator) -> None:
    for value, updates in [
        (torch.ones(2), []),
        (torch.ones(2), [update("a", 1.0, torch.ones(3))]),
        (torch.ones(2, dtype=torch.int64), [update("a", 1.0, torch.ones(2))]),
    ]:
        with pytest.raises(PlanError):
            aggregator.reduce(value, updates)


@robust
@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(aggregator: Aggregator, weight: float) -> None:
    with pytest.raises(PlanError, match="b: a weight of"):
        aggregator.reduce(torch.ones(2), [update("a", 1.0, torch.ones(2)), update("b", weight, torch.ones(2))])


@robust
@pytest.mark.parametrize("length", [1e3, 1e18, 1e38])
def test_one_of_seven_that_shouts_hardly_moves_a_robust_centre(aggregator: Aggregator, length: float) -> None:
    value = torch.zeros(40)
    shared = normal(50, 40)
    deltas = [shared + 0.1 * normal(k, 40) for k in range(6)]
    loud = length * normal(8, 40).sign()
    clean = aggregator.reduce(value, updates_of(deltas))
    # First and last by id, as ties go by ids.
    for updates in ([update("a", 1 / 7, loud)], [update("z", 1 / 7, loud)]):
        found = aggregator.reduce(value, updates + updates_of(deltas, [1 / 7] * 6))
        # Norm clipping still takes the loud one's direction, in the length of the others; Krum takes another one.
        allowed = 0.35 if isinstance(aggregator, NormClipping) else 0.25 if isinstance(aggregator, Krum) else 0.1
        assert (found - clean).norm() < allowed * shared.norm()


@robust
def test_squares_that_are_too_large_for_float64_do_no_harm(aggregator: Aggregator) -> None:
    deltas = [normal(k, 20, dtype=torch.float64) for k in range(5)]
    loud = torch.full((20,), 1e300, dtype=torch.float64)
    result = moved(aggregator, updates_of([*deltas, loud]))
    assert result.abs().max() < 5
    assert np.isfinite(result.numpy()).all()
