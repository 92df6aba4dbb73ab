"""Tasks that are labels of the same rows (`training.same_rows`): the rows are compared once, and kept once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from common.errors import DataError
from common.families.encoded_pairs import EncodedPairs
from common.families.encoded_rows import EncodedRows
from common.families.encoded_text import EncodedText

if TYPE_CHECKING:
    from client.trainer import TaskData
    from common.families.base import EncodedSplit


def with_same_rows(data: Mapping[str, TaskData]) -> dict[str, TaskData]:
    """The same tasks, their training inputs in the first task's memory; validation inputs too where they are the same.

    Args:
        data: at least one task.

    Raises:
        DataError: two tasks differ in their training rows; names the tasks and the first row that differs.
    """
    first, kept = next(iter(data.items()))
    shared = {}
    for task, own in data.items():
        if len(own.train) != len(kept.train):
            raise DataError(
                f"training.same_rows: task {first!r} has {len(kept.train)} training rows and task {task!r} "
                f"{len(own.train)}, so they are not the same rows; set it to false"
            )
        if (row := _first_difference(kept.train, own.train)) is not None:
            raise DataError(
                f"training.same_rows: the inputs of tasks {first!r} and {task!r} differ from training row {row} on "
                "(counted from 0), so they are not the same rows; set it to false"
            )
        held_out = own.validation
        if held_out is not None and kept.validation is not None and len(held_out) == len(kept.validation):
            same = _first_difference(kept.validation, held_out) is None
            held_out = _with_inputs_of(kept.validation, held_out) if same else held_out
        shared[task] = replace(own, train=_with_inputs_of(kept.train, own.train), validation=held_out)
    return shared


def kept_once(one: EncodedSplit, other: EncodedSplit) -> bool:
    """Whether the inputs of two splits are in the same memory, as `with_same_rows` leaves them."""
    match one, other:
        case EncodedRows(), EncodedRows():
            return one.numeric is other.numeric and one.codes is other.codes
        case EncodedText(), EncodedText():
            return one.ids is other.ids and one.offsets is other.offsets and one.type_ids is other.type_ids
        case EncodedPairs(), EncodedPairs():
            return kept_once(one.texts, other.texts)
        case _:
            return one is other


def _first_difference(one: EncodedSplit, other: EncodedSplit) -> int | None:
    """The first row whose inputs differ, of equally many; None where all are the same."""
    match one, other:
        case EncodedRows(), EncodedRows():
            if (one.numeric.shape, one.codes.shape, one.width) != (other.numeric.shape, other.codes.shape, other.width):
                return 0
            differs = np.zeros(len(one), dtype=bool)
            for ours, theirs in ((one.numeric, other.numeric), (one.codes, other.codes)):
                if ours is not theirs:
                    differs |= (ours != theirs).any(axis=1)
            return int(differs.argmax()) if differs.any() else None
        case EncodedText(), EncodedText():
            return _first_text(one, other)
        case EncodedPairs(), EncodedPairs():
            row = _first_text(one.texts, other.texts)
            return None if row is None else row // 2
        case _:
            return None if one is other else 0


def _first_text(one: EncodedText, other: EncodedText) -> int | None:
    """As `_first_difference`; a pair differs from a text that reads alike."""
    if (one.pad_id, one.type_ids is None) != (other.pad_id, other.type_ids is None):
        return 0
    longer = np.flatnonzero(one.lengths != other.lengths)
    until = int(longer[0]) if len(longer) else len(one)  # up to there tokens have the same places
    tokens = int(one.offsets[until])
    differs = one.ids[:tokens] != other.ids[:tokens]
    if one.type_ids is not None and other.type_ids is not None:
        differs |= one.type_ids[:tokens] != other.type_ids[:tokens]
    if differs.any():
        return int(np.searchsorted(one.offsets, differs.argmax(), side="right")) - 1
    return until if len(longer) else None


def _with_inputs_of(kept: EncodedSplit, own: EncodedSplit) -> EncodedSplit:
    """A split whose inputs are those of another, without their memory."""
    match kept, own:
        case EncodedRows(), EncodedRows():
            return replace(own, numeric=kept.numeric, codes=kept.codes)
        case EncodedText(), EncodedText():
            return replace(own, ids=kept.ids, type_ids=kept.type_ids, offsets=kept.offsets)
        case EncodedPairs(), EncodedPairs():
            texts = own.texts
            return replace(
                own,
                texts=replace(texts, ids=kept.texts.ids, type_ids=kept.texts.type_ids, offsets=kept.texts.offsets),
            )
        case _:
            return own
