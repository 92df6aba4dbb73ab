"""Pooling over real tokens only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.families.pooling import Pooling, first_last_average, pool


@pytest.mark.parametrize("how", ["cls", "mean", "max", "first_last"])
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), extra=st.integers(0, 4), seed=st.integers(0, 99))
def test_padding_never_counts(how: Pooling, lengths: list[int], extra: int, seed: int) -> None:
    longest = max(lengths) + extra
    tokens = torch.randn(len(lengths), longest, 3, generator=torch.Generator().manual_seed(seed)) - 5
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    pooled = pool(tokens, mask, how)
    for row, length in enumerate(lengths):
        real = tokens[row, :length]
        expected = {"cls": real[0], "mean": real.mean(0), "max": real.amax(0), "first_last": real.mean(0)}[how]
        torch.testing.assert_close(pooled[row], expected)


def test_first_is_the_first_transformer_layer_and_not_the_embeddings() -> None:
    layers = [torch.full((1, 2, 3), value) for value in (100.0, 2.0, 50.0, 4.0)]
    assert torch.equal(first_last_average(layers), torch.full((1, 2, 3), 3.0))
