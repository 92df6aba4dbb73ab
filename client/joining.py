"""Rows of several tasks as one batch, where the model can take them so."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from torch import Tensor

from client.mixing import Indices
from client.vocabulary import CompactSplit
from common.families.base import EncodedSplit
from common.families.encoded_rows import EncodedRows, collate_rows, joinable_rows
from common.families.encoded_text import EncodedText, collate_parts, joinable


def joinable_groups(splits: Mapping[str, EncodedSplit]) -> list[tuple[str, ...]]:
    """Group tasks whose rows can stand in one batch: texts that are read alike, tabular rows of the same columns.

    Any other task is by itself.

    Args:
        splits: task to its rows.
    """
    groups: list[tuple[str, ...]] = []
    for task in splits:
        home = next((i for i, group in enumerate(groups) if _alike([splits[t] for t in (*group, task)])), None)
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
    tabular = [(split, rows) for split, rows in parts.values() if isinstance(split, EncodedRows)]
    if len(tabular) == len(parts):
        return collate_rows(tabular)
    texts: list[tuple[EncodedText, Indices]] = []
    for split, rows in parts.values():
        text = _text(split)
        if not isinstance(text, EncodedText):
            raise ValueError(f"rows of {list(parts)} can't stand in one batch")  # noqa: TRY004  # no type is wrong
        texts.append((text, rows))
    batch = collate_parts(texts)
    # Tasks of one pass read the same embedding table, so any of their splits knows its rows.
    compact = next((split for split, _ in parts.values() if isinstance(split, CompactSplit)), None)
    return batch if compact is None else compact.by_rows(batch)


def _alike(splits: list[EncodedSplit]) -> bool:
    return joinable_rows(splits) or joinable(map(_text, splits))


def _text(split: EncodedSplit) -> EncodedSplit:
    return split.text if isinstance(split, CompactSplit) else split


def places(rows: Mapping[str, Sized]) -> dict[str, slice]:
    """Where each task's rows lie in a joined batch, in the order given."""
    found: dict[str, slice] = {}
    start = 0
    for task, part in rows.items():
        found[task] = slice(start, start + len(part))
        start += len(part)
    return found
