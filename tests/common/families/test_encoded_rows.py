from __future__ import annotations

import numpy as np
import pytest
import torch

from common.families.encoded_rows import EncodedRows


@pytest.mark.parametrize("numbers", [0, 1, 3])
def test_every_value_has_its_entry_and_an_undeclared_one_none(numbers: int) -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(-1, 3, 40), rng.choice([-1, 3, 4], 40)], axis=1).astype(np.int32)
    rows = EncodedRows(rng.random((40, numbers), dtype=np.float32), codes, 5, torch.arange(40))
    indices = np.array([7, 0, 39, 7])
    features = rows.collate(indices)["features"]
    assert features.shape == (4, numbers + 5)
    assert features.dtype == torch.float32
    for row, index in zip(features.numpy(), indices, strict=True):
        assert row[:numbers].tolist() == rows.numeric[index].tolist()
        assert np.flatnonzero(row[numbers:]).tolist() == sorted(code for code in codes[index] if code >= 0)
        assert set(row[numbers:]) <= {0.0, 1.0}


def test_a_part_of_the_rows_is_as_the_whole() -> None:
    rows = EncodedRows(np.eye(4, dtype=np.float32), np.zeros((4, 1), np.int32), 1, torch.arange(4), torch.arange(4.0))
    part = rows.take(np.array([3, 1]))
    assert len(part) == 2
    assert part.labels.tolist() == [3, 1]
    assert part.weights is not None
    assert part.weights.tolist() == [3.0, 1.0]
    both = np.arange(2)
    assert torch.equal(part.collate(both)["features"], rows.collate(np.array([3, 1]))["features"])
