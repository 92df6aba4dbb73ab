"""Flat token ids to padded batches, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.families.encoded_text import EncodedText, collate_parts, joinable

rows_of_ids = st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=9), min_size=1, max_size=8)


def encoded(rows: list[list[int]], *, type_ids: bool, pad_id: int = 0) -> EncodedText:
    flat = np.array([i for row in rows for i in row], dtype=np.int32)
    return EncodedText(
        ids=flat,
        type_ids=(flat % 2).astype(np.uint8) if type_ids else None,
        offsets=np.cumsum([0, *(len(row) for row in rows)]),
        labels=torch.zeros(len(rows)),
        pad_id=pad_id,
    )


@given(rows_of_ids, st.booleans(), st.data())
def test_a_batch_holds_exactly_the_rows_asked_for_padded_to_the_longest(
    rows: list[list[int]], type_ids: bool, data: st.DataObject
) -> None:
    split = encoded(rows, type_ids=type_ids, pad_id=1)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    batch = split.collate(np.array(chosen))
    longest = max(len(rows[i]) for i in chosen)
    assert set(batch) == {"input_ids", "attention_mask"} | ({"token_type_ids"} if type_ids else set())
    for name, block in batch.items():
        assert block.shape == (len(chosen), longest), name
        assert block.dtype == torch.int64
    for position, i in enumerate(chosen):
        padding = longest - len(rows[i])
        assert batch["input_ids"][position].tolist() == rows[i] + [1] * padding
        assert batch["attention_mask"][position].tolist() == [1] * len(rows[i]) + [0] * padding
        if type_ids:
            assert batch["token_type_ids"][position].tolist() == [t % 2 for t in rows[i]] + [0] * padding


def test_lengths_are_tokens_per_row() -> None:
    split = encoded([[5], [1, 2, 3], [4, 4]], type_ids=False)
    assert split.lengths.tolist() == [1, 3, 2]
    assert len(split) == 3


@given(rows_of_ids, rows_of_ids, st.booleans())
def test_rows_of_several_splits_stand_one_after_the_other_as_if_they_were_of_one(
    first: list[list[int]], second: list[list[int]], type_ids: bool
) -> None:
    splits = [encoded(rows, type_ids=type_ids, pad_id=1) for rows in (first, second)]
    joint = collate_parts([(split, np.arange(len(split))) for split in splits])
    expected = encoded(first + second, type_ids=type_ids, pad_id=1).collate(np.arange(len(first) + len(second)))
    assert joint.keys() == expected.keys()
    assert all(torch.equal(joint[name], expected[name]) for name in joint)


def test_splits_that_are_read_differently_do_not_join() -> None:
    plain, padded_otherwise = encoded([[5]], type_ids=False), encoded([[5]], type_ids=False, pad_id=1)
    assert joinable([plain, plain])
    for other in (padded_otherwise, encoded([[5]], type_ids=True), object()):
        assert not joinable([plain, other])
    with pytest.raises(ValueError, match="can't stand in one batch"):
        collate_parts([(plain, np.array([0])), (padded_otherwise, np.array([0]))])
