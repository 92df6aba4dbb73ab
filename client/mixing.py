"""Batches of several tasks: how many rows of each a step holds, which ones, and in how many passes they are computed.

A task's rows are spread evenly over the round's steps. Inside a pool of steps each task's rows are sorted by length
and dealt in that order, so that a step holds short rows of every task or long ones of every task. Where tasks differ
in length all the same, a step is computed in two or three passes of similar lengths: the step's composition follows
the sampler alone, never the lengths, as else a task's rows of unusual length would be seen in strange company.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Lengths = NDArray[np.integer]

#: A pass that pads more than this share of its tokens is cut in two where that saves most.
MOST_PADDING: Final = 0.1
#: A pass has a price of its own; a cut must save at least so many tokens, padding included.
LEAST_SAVING: Final = 64


def compositions(counts: Mapping[str, int], batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How many rows of each task each step holds.

    A task's rows lie at equal distances along the round, each task starting at random within its first distance;
    steps are cut from all rows in order. So every step holds about its share of each task (off by less than one row
    and a row per other task), and all steps together exactly `counts`.

    Args:
        counts: task to its rows in the round, summing to at least 1.
        batch_size: rows per step; the last step may hold fewer.
        rng: one number per task is drawn.

    Returns:
        ``(steps, tasks)``, tasks in the order of `counts`.
    """
    numbers = np.fromiter(counts.values(), dtype=np.int64)
    starts = rng.random(len(numbers))
    places = np.concatenate([(np.arange(n) + start) / max(n, 1) for n, start in zip(numbers, starts, strict=True)])
    task = np.repeat(np.arange(len(numbers)), numbers)[np.argsort(places, kind="stable")]
    step = np.arange(len(task)) // batch_size
    table = np.bincount(step * len(numbers) + task, minlength=(int(step[-1]) + 1) * len(numbers))
    return table.reshape(-1, len(numbers)).astype(np.int64)


def deal(
    table: NDArray[np.int64],
    streams: Mapping[str, Iterator[Indices]],
    lengths: Mapping[str, Lengths],
    rng: np.random.Generator,
    *,
    pool_steps: int,
    buckets: bool,
) -> Iterator[dict[str, Indices]]:
    """The rows of each step, as many of each task as the table says.

    Args:
        table: ``(steps, tasks)``, tasks in the order of `streams`.
        streams: task to its epochs without end, each a permutation of its rows.
        lengths: task to the length of each row.
        rng: draws the order of the steps within a pool.
        pool_steps: steps per pool.
        buckets: sort by length inside a pool.

    Yields:
        task to rows, tasks without any left out.
    """
    supply = {task: _Rows(stream) for task, stream in streams.items()}
    for first in range(0, len(table), pool_steps):
        part = table[first : first + pool_steps]
        dealt = {}
        for column, (task, rows) in zip(part.T, supply.items(), strict=True):
            taken = rows.take(int(column.sum()))
            if buckets and len(taken):
                taken = by_length(taken, lengths[task], int(column.max()))
            dealt[task] = np.split(taken, np.cumsum(column)[:-1])
        for step in rng.permutation(len(part)) if buckets else range(len(part)):
            yield {task: groups[step] for task, groups in dealt.items() if len(groups[step])}


def by_length(rows: Indices, lengths: Lengths, width: int) -> Indices:
    """Rows in order of length, but copies of a row far enough from each other not to meet in one step.

    Neighbours by length form windows of at least `width` rows; a window is gone through as often as its rows occur.
    Where all rows occur equally often, and there are at least `width` of them, none comes twice among `width`
    neighbours.

    Args:
        rows: ``(N,)``, the rows that a pool of steps takes from one epoch or several.
        lengths: the length of every row of the split.
        width: the most that are dealt to one step.
    """
    distinct, drawn, which = np.unique(rows, return_index=True, return_inverse=True)
    rank = np.empty(len(distinct), dtype=np.int64)
    rank[np.lexsort((drawn, lengths[distinct]))] = np.arange(len(distinct))
    window = np.minimum(rank // width, max(0, len(distinct) // width - 1))
    order = np.argsort(which, kind="stable")
    times = np.bincount(which)
    occurrence = np.empty(len(rows), dtype=np.int64)
    occurrence[order] = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    sorted_: Indices = rows[np.lexsort((rank[which], occurrence, window[which]))]
    return sorted_


def passes(rows: Mapping[str, Indices], lengths: Mapping[str, Lengths]) -> list[dict[str, Indices]]:
    """A step's rows in the portions that are computed at once: one, or more where its tasks differ much in length.

    Rows of a single task stay together: they were dealt by length.

    Args:
        rows: task to its rows in the step.
        lengths: task to the length of each row of its split.

    Returns:
        Portions as `rows`, together exactly the rows given.
    """
    tasks = list(rows)
    flat = np.concatenate([rows[task] for task in tasks])
    if len(tasks) == 1:
        return [dict(rows)]
    task = np.repeat(np.arange(len(tasks)), [len(rows[name]) for name in tasks])
    length = np.concatenate([lengths[name][rows[name]] for name in tasks])
    order = np.argsort(length, kind="stable")
    portions = []
    for start, end in pairwise(_cuts(length[order])):
        inside = np.sort(order[start:end])  # in the order of tasks, and of rows within them
        portions.append({name: flat[inside[task[inside] == i]] for i, name in enumerate(tasks) if i in task[inside]})
    return portions


def _cuts(length: NDArray[np.integer]) -> list[int]:
    """Where sorted lengths are cut, both ends included, until no portion pads much or a cut no longer pays."""
    bounds, open_ = [0, len(length)], [(0, len(length))]
    while open_:
        start, end = open_.pop()
        part = length[start:end]
        computed = len(part) * int(part[-1])
        if computed - int(part.sum()) <= MOST_PADDING * computed:
            continue
        below = np.arange(1, len(part)) * part[:-1] + np.arange(len(part) - 1, 0, -1) * int(part[-1])
        cut = int(np.argmin(below))
        if computed - int(below[cut]) < LEAST_SAVING:
            continue
        middle = start + cut + 1
        bounds.append(middle)
        open_ += [(start, middle), (middle, end)]
    return sorted(bounds)


class _Rows:
    """Takes any number of rows from a stream of epochs."""

    def __init__(self, epochs: Iterator[Indices]) -> None:
        self._epochs = epochs
        self._left: Indices = np.empty(0, dtype=np.int64)

    def take(self, count: int) -> Indices:
        parts = []
        while count > 0:
            if not len(self._left):
                self._left = next(self._epochs)
            parts.append(self._left[:count])
            self._left = self._left[count:]
            count -= len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
