"""Rows of several tasks as one batch, where the model can take them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

from torch import Tensor

from client.mixing import Indices
from common.families.base import EncodedSplit
from common.families.encoded_text import EncodedText, collate_parts, joinable


def joinable_groups(splits: Mapping[str, EncodedSplit]) -> list[tuple[str, ...]]:
    """Group tasks whose rows can stand in one batch: texts that are read alike. Any other task is by itself.

    Args:
        splits: task to its rows.
    """
    groups: list[tuple[str, ...]] = []
    for task in splits:
        home = next((i for i, group in enumerate(groups) if joinable(splits[t] for t in (*group, task))), None)
        if home is None:
            groups.append((task,))
        else:
            groups[home] = (*groups[home], task)
    return groups


def join(parts: Mapping[str, tuple[EncodedSplit, Indices]]) -> dict[str, Tensor]:
    """The model's inputs for rows of several tasks, one task's after the other's.

    Args:
        parts: task to its split and the numbers of its rows; the tasks of one `joinable_groups`.

    Raises:
        ValueError: the splits don't fit one batch.
    """
    texts: Sequence[tuple[EncodedText, Indices]] = [
        (split, rows) for split, rows in parts.values() if isinstance(split, EncodedText)
    ]
    if len(texts) != len(parts):
        raise ValueError(f"rows of {list(parts)} can't stand in one batch")
    return collate_parts(texts)


def places(rows: Mapping[str, Sized]) -> dict[str, slice]:
    """Where each task's rows lie in a joined batch, in the order given."""
    found: dict[str, slice] = {}
    start = 0
    for task, part in rows.items():
        found[task] = slice(start, start + len(part))
        start += len(part)
    return found
