"""Which examples make up each optimiser step of a round.

A batch holds one task, or (`client.mixing`) several, or rows that are several tasks' at once. Within an epoch a task's
examples are permuted, cut into pools of a few dozen batches, sorted by length inside each pool and dealt into batches:
a batch then pads to about its own length, while its members still vary from epoch to epoch. The whole order follows
from (seed, round, client, task).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from client.mixing import Indices, Lengths, compositions, deal
from client.sampling import share_steps, task_shares
from common.seeds import derive_numpy
from common.training import Position, TrainSettings, epoch_steps, mixed_examples, mixes, round_steps, shares_rows

__all__ = ["Batch", "Indices", "Lengths", "by_length", "epoch", "round_batches"]

#: Batches per pool: 50 leaves 2-4 % of padding on sentences; more gains little and mixes less.
POOL_BATCHES = 50


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step's examples.

    Attributes:
        rows: task to rows of its training split, at least one of each.
        same_rows: the numbers are the same for each task, and so are the rows: one pass computes all tasks of them.
    """

    rows: Mapping[str, Indices]
    same_rows: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


def round_batches(
    lengths: Mapping[str, Lengths],
    settings: TrainSettings,
    position: Position,
    seed: int,
    client_id: str,
    weakness: Mapping[str, float] | None = None,
) -> Iterator[Batch]:
    """The batches of one client's round, `round_steps` of them, in the order in which they are trained.

    Args:
        lengths: task to the length of each of its training examples.
        settings: batch size, bucketing, how steps are shared among tasks, and whether a step holds several.
        position: the round.
        seed: the run's seed.
        client_id: whose round it is; another client draws other batches.
        weakness: see `client.sampling.task_shares`.
    """
    path: tuple[str | int, ...] = ("round", position.round, "client", client_id)
    tasks = sorted(lengths)
    sizes = {task: len(lengths[task]) for task in tasks}
    if shares_rows(settings, tasks):
        of_all = _endless(lengths[tasks[0]], settings, seed, (*path, "rows"))
        for rows in islice(of_all, round_steps(settings, sizes)):
            yield Batch(dict.fromkeys(tasks, rows), same_rows=True)
        return
    if mixes(settings, tasks):
        yield from _mixed(lengths, sizes, settings, position, weakness, seed, path)
        return
    epochs = {task: epoch_steps(size, settings.batch_size) for task, size in sizes.items()}
    shares = task_shares(settings, epochs, position, weakness)
    steps = share_steps(round_steps(settings, sizes), shares, derive_numpy(seed, *path, "shares"))
    order = np.repeat(np.arange(len(tasks)), [steps[task] for task in tasks])
    derive_numpy(seed, *path, "order").shuffle(order)
    streams = {task: _endless(lengths[task], settings, seed, (*path, "task", task)) for task in tasks if steps[task]}
    for position_of_task in order:
        task = tasks[int(position_of_task)]
        yield Batch({task: next(streams[task])})


def _mixed(
    lengths: Mapping[str, Lengths],
    sizes: Mapping[str, int],
    settings: TrainSettings,
    position: Position,
    weakness: Mapping[str, float] | None,
    seed: int,
    path: tuple[str | int, ...],
) -> Iterator[Batch]:
    """Batches of several tasks; whole epochs, when proportional, hold every example once."""
    shares = task_shares(settings, sizes, position, weakness)
    counts = share_steps(mixed_examples(settings, sizes), shares, derive_numpy(seed, *path, "shares"))
    table = compositions(counts, settings.batch_size, derive_numpy(seed, *path, "compositions"))
    streams = {task: _permutations(size, seed, (*path, "task", task)) for task, size in sizes.items()}
    order = derive_numpy(seed, *path, "order")
    dealt = deal(table, streams, lengths, order, pool_steps=POOL_BATCHES, buckets=settings.length_buckets)
    yield from map(Batch, dealt)


def epoch(lengths: Lengths, batch_size: int, rng: np.random.Generator, *, buckets: bool) -> list[Indices]:
    """One pass over all examples, each in exactly one batch; one batch at most is smaller than the rest.

    Args:
        lengths: ``(N,)``, the cost of each example.
        batch_size: examples per batch.
        rng: draws the permutation and the order of batches.
        buckets: sort by length inside pools of `POOL_BATCHES` batches.
    """
    permutation = rng.permutation(len(lengths))
    if not buckets:
        return [permutation[start : start + batch_size] for start in range(0, len(permutation), batch_size)]
    batches: list[Indices] = []
    pool_size = POOL_BATCHES * batch_size
    for start in range(0, len(permutation), pool_size):
        pool = permutation[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[place] for place in rng.permutation(len(batches))]


def by_length(lengths: Lengths, batch_size: int) -> list[Indices]:
    """All examples once, shortest first: least padding, for evaluation, where order does not matter."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _endless(lengths: Lengths, settings: TrainSettings, seed: int, path: tuple[str | int, ...]) -> Iterator[Indices]:
    """Epoch after epoch of one task, each with a fresh permutation."""
    for number in count():
        rng = derive_numpy(seed, *path, "epoch", number)
        yield from epoch(lengths, settings.batch_size, rng, buckets=settings.length_buckets)


def _permutations(size: int, seed: int, path: tuple[str | int, ...]) -> Iterator[Indices]:
    """All rows of one task in a fresh order, again and again."""
    for number in count():
        yield derive_numpy(seed, *path, "epoch", number).permutation(size)
