from __future__ import annotations

import numpy as np
import pytest
import torch

from client.joining import join, joinable_groups, places
from common.families.encoded_rows import EncodedRows
from tests.client.tiny_family import tiny_split
from tests.common.families.tiny import text_family, texts


def test_texts_stand_in_one_batch_and_other_rows_by_themselves() -> None:
    family = text_family()
    splits = {task: family.encode(task, texts(task)) for task in ("sst2", "stsb")}
    rows = np.array([0, 2])
    assert joinable_groups(splits) == [("sst2", "stsb")]
    joined = join({task: (split, rows) for task, split in splits.items()})
    for task, where in places(dict.fromkeys(splits, rows)).items():
        alone = splits[task].collate(rows)
        width = alone["input_ids"].shape[1]
        for name, tensor in alone.items():
            assert torch.equal(joined[name][where][:, :width], tensor)
    tiny = {"mood": tiny_split("mood", 4), "score": tiny_split("score", 4)}
    assert joinable_groups(tiny | splits) == [("mood",), ("score",), ("sst2", "stsb")]
    with pytest.raises(ValueError, match="mood"):
        join({task: (split, rows) for task, split in tiny.items()})


def test_tabular_rows_of_the_same_columns_stand_in_one_batch() -> None:
    def rows(count: int, width: int = 5) -> EncodedRows:
        rng = np.random.default_rng(count)
        codes = rng.integers(-1, width, (count, 2), dtype=np.int32)
        return EncodedRows(rng.random((count, 3), dtype=np.float32), codes, width, torch.zeros(count))

    splits = {"a": rows(4), "b": rows(6), "c": rows(6, 9)}
    assert joinable_groups(splits) == [("a", "b"), ("c",)]
    chosen = {"a": np.array([3, 0]), "b": np.array([5, 1, 1])}
    joined = join({task: (splits[task], indices) for task, indices in chosen.items()})
    for task, where in places(chosen).items():
        alone = splits[task].collate(chosen[task])
        assert torch.equal(joined["features"][where], alone["features"])
    with pytest.raises(ValueError, match="different columns"):
        join({task: (split, np.array([0])) for task, split in splits.items()})


def test_places_follow_one_another() -> None:
    assert places({"a": [1, 2], "b": [3], "c": [4, 5, 6]}) == {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 6)}
