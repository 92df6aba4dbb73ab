"""Pairs of texts: two rows of ids side by side, padded to one length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.families.encoded_pairs import EncodedPairs
from common.families.encoded_text import joinable
from tests.common.families.test_encoded_text import encoded

rows_of_ids = st.lists(st.integers(1, 1000), min_size=1, max_size=9)
pairs_of_ids = st.lists(st.tuples(rows_of_ids, rows_of_ids), min_size=1, max_size=6)


@given(pairs_of_ids, st.booleans(), st.data())
def test_a_batch_holds_both_texts_of_the_pairs_asked_for(
    rows: list[tuple[list[int], list[int]]], type_ids: bool, data: st.DataObject
) -> None:
    pairs = EncodedPairs(encoded([text for pair in rows for text in pair], type_ids=type_ids, pad_id=1))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5)))
    batch = pairs.collate(chosen)
    longest = max(len(text) for i in chosen for text in rows[i])
    assert {block.shape for block in batch.values()} == {(len(chosen), 2, longest)}
    for place, i in enumerate(chosen):
        for side, text in enumerate(rows[i]):
            assert batch["input_ids"][place, side].tolist() == text + [1] * (longest - len(text))
            assert int(batch["attention_mask"][place, side].sum()) == len(text)
    assert batch["input_ids"].numel() == len(chosen) * max(pairs.lengths[chosen]), "the cost is what is computed"


def test_labels_are_the_pairs_own() -> None:
    texts = encoded([[1], [2, 3], [4], [5]], type_ids=False)
    object.__setattr__(texts, "labels", torch.tensor([7, 7, 9, 9]))
    pairs = EncodedPairs(texts)
    assert pairs.labels.tolist() == [7, 9]
    assert pairs.weights is None
    weighted = EncodedPairs(replace(texts, weights=torch.tensor([0.5, 0.5, 2, 2])))
    assert weighted.weights is not None
    assert weighted.weights.tolist() == [0.5, 2]
    assert len(pairs) == 2
    assert pairs.lengths.tolist() == [4, 2]
    assert not joinable([pairs, texts])
