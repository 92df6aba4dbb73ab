from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.aggregation import Delta, DenseDelta, RowsDelta


@st.composite
def sparse(draw: st.DrawFn) -> tuple[Tensor, RowsDelta]:
    """A tensor most rows of which are zero, and the delta that holds the others."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    indices = torch.tensor(sorted(draw(st.sets(st.integers(0, shape[0] - 1)))), dtype=torch.int64)
    values = torch.randn(len(indices), *shape[1:], generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    dense = torch.zeros(shape)
    dense[indices] = values
    return dense, RowsDelta.of(shape, indices, values)


@given(sparse(), st.data())
def test_rows_read_like_the_dense_tensor_in_any_range(drawn: tuple[Tensor, RowsDelta], data: st.DataObject) -> None:
    dense, rows = drawn
    start = data.draw(st.integers(0, dense.numel()))
    stop = data.draw(st.integers(start, dense.numel()))
    out = torch.full((stop - start,), 9.0)
    rows.read(start, out)
    assert torch.equal(out, dense.view(-1)[start:stop])
    again = torch.full((stop - start,), 9.0)
    DenseDelta.of(dense).read(start, again)
    assert torch.equal(out, again)


@given(sparse(), st.data(), st.floats(-2, 2))
def test_rows_add_like_the_dense_tensor_in_any_range(
    drawn: tuple[Tensor, RowsDelta], data: st.DataObject, weight: float
) -> None:
    dense, rows = drawn
    start = data.draw(st.integers(0, dense.numel()))
    stop = data.draw(st.integers(start, dense.numel()))
    before = torch.randn(stop - start, dtype=torch.float64)
    expected, found = before.clone(), before.clone()
    DenseDelta.of(dense).add_to(expected, start, weight)
    rows.add_to(found, start, weight)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_deltas_of_every_float_type_are_added_in_float64(dtype: torch.dtype) -> None:
    values = torch.randn(3, 4).to(dtype)
    deltas: list[Delta] = [DenseDelta.of(values), RowsDelta.of((3, 4), torch.arange(3), values)]
    for delta in deltas:
        accumulator = torch.zeros(12, dtype=torch.float64)
        delta.add_to(accumulator, 0, 0.1)
        assert torch.equal(accumulator, values.view(-1).double() * 0.1)
