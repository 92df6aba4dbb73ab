"""Pieces of a batch: together the batch, none too large."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client.batches import Batch
from client.micro_batches import pieces


@given(
    st.dictionaries(st.sampled_from(["mood", "topic", "score"]), st.integers(1, 40), min_size=1),
    st.one_of(st.none(), st.integers(1, 50)),
)
def test_pieces_are_the_batch_in_order_and_no_more_of_them_than_needed(sizes: dict[str, int], size: int | None) -> None:
    batch = Batch({task: np.arange(count) * 7 for task, count in sizes.items()})
    cut = list(pieces(batch, size))
    assert all(1 <= len(piece) <= (size or len(batch)) for piece in cut)
    assert len(cut) == (1 if size is None else -(-len(batch) // size))
    for task, rows in batch.rows.items():
        together = np.concatenate([piece.rows[task] for piece in cut if task in piece.rows])
        np.testing.assert_array_equal(together, rows)
    assert all(len(rows) for piece in cut for rows in piece.rows.values())
