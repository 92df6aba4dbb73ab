"""Which examples make up each optimiser step of a round.

Every batch holds one task. Within an epoch a task's examples are permuted, cut into pools of a few dozen batches,
sorted by length inside each pool and dealt into batches: a batch then pads to about its own length, while its
members still vary from epoch to epoch. The whole order follows from (seed, round, client, task).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from common.seeds import derive_numpy
from common.training import Position, TaskSampling, TrainSettings, epoch_steps, round_steps

Indices = NDArray[np.int64]
Lengths = NDArray[np.integer]

#: Batches per pool: 50 leaves 2-4 % of padding on sentences; more gains little and mixes less.
POOL_BATCHES = 50


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step's examples.

    Attributes:
        rows: task to rows of its training split, at least one of each.
    """

    rows: Mapping[str, Indices]

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


def round_batches(
    lengths: Mapping[str, Lengths], settings: TrainSettings, position: Position, seed: int, client_id: str
) -> Iterator[Batch]:
    """The batches of one client's round, `round_steps` of them, in the order in which they are trained.

    Args:
        lengths: task to the length of each of its training examples.
        settings: batch size, bucketing, and how steps are shared among tasks.
        position: the round.
        seed: the run's seed.
        client_id: whose round it is; another client draws other batches.
    """
    path: tuple[str | int, ...] = ("round", position.round, "client", client_id)
    tasks = sorted(lengths)
    sizes = {task: len(lengths[task]) for task in tasks}
    total = round_steps(settings, sizes)
    epochs = {task: epoch_steps(size, settings.batch_size) for task, size in sizes.items()}
    shares = share_steps(total, epochs, settings.task_sampling, derive_numpy(seed, *path, "shares"))
    order = np.repeat(np.arange(len(tasks)), [shares[task] for task in tasks])
    derive_numpy(seed, *path, "order").shuffle(order)
    streams = {task: _endless(lengths[task], settings, seed, (*path, "task", task)) for task in tasks if shares[task]}
    for position_of_task in order:
        task = tasks[int(position_of_task)]
        yield Batch({task: next(streams[task])})


def share_steps(
    total: int, epoch_batches: Mapping[str, int], sampling: TaskSampling, rng: np.random.Generator
) -> dict[str, int]:
    """Share a round's steps among tasks.

    Each task gets its exact share rounded up or down, at random but unbiased (systematic sampling), so that with
    fewer steps than tasks no task is left out in every round. Shares that are whole numbers are met exactly:
    `proportional` with whole epochs gives each task its own batches.

    Args:
        total: steps to share.
        epoch_batches: task to its batches per epoch, at least 1.
        sampling: what the shares are proportional to.
        rng: one number is drawn.

    Returns:
        task to steps, summing to `total`.
    """
    weight = {
        task: {"proportional": float(batches), "even": 1.0, "sqrt": math.sqrt(batches)}[sampling]
        for task, batches in epoch_batches.items()
    }
    whole, offset = math.fsum(weight.values()), rng.random()
    shares: dict[str, int] = {}
    reached, before = 0.0, 0
    for task, part in weight.items():
        reached += part
        upto = min(total, math.floor(total * reached / whole + offset))
        shares[task], before = upto - before, upto
    shares[next(reversed(shares))] += total - before  # rounding of the last sum, if any
    return shares


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
