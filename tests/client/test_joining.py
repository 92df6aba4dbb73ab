from __future__ import annotations

import numpy as np
import pytest
import torch

from client.joining import join, joinable_groups, places
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


def test_places_follow_one_another() -> None:
    assert places({"a": [1, 2], "b": [3], "c": [4, 5, 6]}) == {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 6)}
