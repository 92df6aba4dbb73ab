"""Runs of training that differ in nothing but their seed."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from experiments.intervals import Interval, t_interval
from experiments.report.plots import family_order
from experiments.report.results import TrainResult

#: Settings by which runs are told apart where some differ in them, beside the number of epochs.
TOLD_APART: Final = ("expert_weights", "optimizer", "learning_rate", "batch_size", "schedule", "local_epochs", "limit")


@dataclass(frozen=True)
class Group:
    """Runs of one model, dataset, length and place.

    Attributes:
        model: the family.
        dataset: the data set with its task pair.
        federated: number of clients; None: central.
        partition: how rows were dealt to them.
        epochs: of every run.
        variant: further settings, in words; empty: none.
        runs: file and result, by seed.
    """

    model: str
    dataset: str
    federated: int | None
    partition: str | None
    epochs: int
    variant: str
    runs: tuple[tuple[str, TrainResult], ...]

    @property
    def place(self) -> str:
        """Where it was trained, in words."""
        if self.federated is None:
            return "central"
        return f"{self.federated} clients" + (f", {self.partition}" if self.partition else "")

    @property
    def label(self) -> str:
        """The group in words."""
        variant = f", {self.variant}" if self.variant else ""
        return f"{self.model} on {self.dataset}, {self.place}{variant}, {self.epochs} epochs"

    @property
    def seeds(self) -> int:
        """How many seeds its runs have."""
        return len({run.seed for _, run in self.runs})

    @property
    def files(self) -> tuple[str, ...]:
        """The files of its runs."""
        return tuple(name for name, _ in self.runs)

    def scores(self, task: str, metric: str = "auc") -> dict[int, float]:
        """Seed to the test metric of the runs that have it; the mean where a seed was run more than once."""
        found: defaultdict[int, list[float]] = defaultdict(list)
        for _, run in self.runs:
            value = run.test.get(task, {}).get(metric)
            if value is not None and math.isfinite(value):
                found[run.seed].append(value)
        return {seed: statistics.fmean(values) for seed, values in found.items()}

    def interval(self, task: str, metric: str = "auc") -> Interval | None:
        """Mean over seeds of the test metric; None: no run has it."""
        values = list(self.scores(task, metric).values())
        return t_interval(values) if values else None


def grouped(train: Sequence[tuple[str, TrainResult]]) -> tuple[Group, ...]:
    """The groups, ordered by data set, family, and place.

    Settings in which the runs of a group would differ, and that are worth telling apart, split it.
    """
    found: Mapping[tuple[str, str, int | None, str | None, int], list[tuple[str, TrainResult]]] = defaultdict(list)
    for name, run in train:
        found[run.model, run.dataset, run.federated, run.partition, run.epochs].append((name, run))
    groups = []
    for key, runs in found.items():
        differing = [name for name in TOLD_APART if len({_setting(run, name) for _, run in runs}) > 1]
        variants: Mapping[str, list[tuple[str, TrainResult]]] = defaultdict(list)
        for pair in sorted(runs, key=lambda pair: (pair[1].seed, pair[0])):
            words = (f"{name.replace('_', ' ')} {_setting(pair[1], name)}" for name in differing)
            variants[", ".join(words)].append(pair)
        groups += [Group(*key, variant, tuple(own)) for variant, own in variants.items()]
    return tuple(
        sorted(
            groups,
            key=lambda g: (g.dataset, family_order(g.model), g.federated or 0, g.partition or "", g.epochs, g.variant),
        )
    )


def _setting(run: TrainResult, name: str) -> str:
    value = run.settings.get(name)
    if value is None:
        return "routing" if name == "expert_weights" else "default"
    return str(value)


def tasks_of(runs: Sequence[TrainResult]) -> tuple[str, ...]:
    """Every task that a run was tested on, in the order met."""
    return tuple(dict.fromkeys(task for run in runs for task in run.test))
