"""Losses of model families over synthetic tasks of rising relatedness (Ma et al., KDD 2018, sections 3.3 and 4.1)."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError, RunFailed
from experiments.batched import BatchedModels, BatchedRows, Schedule
from experiments.cell_store import CellStore
from experiments.gate_distance import gate_distances
from experiments.synthetic import SyntheticRows, SyntheticSpec, SyntheticTasks, generate
from experiments.synthetic_family import TASKS, known_families, synthetic_family

log = logging.getLogger("fedmtl.experiments")

#: As in the paper's figures, and below 0.
CORRELATIONS: Final = (0.9, 0.7, 0.5, 0.3, 0.1, 0.0, -0.1, -0.3, -0.5)


@dataclass(frozen=True)
class Sweep:
    """What is computed.

    Attributes:
        families: some of `known_families`.
        correlations: cosines of the tasks' weight vectors.
        seeds: 0, 1 ... of data, initial values and order of rows.
        learning_rates: all tried; which counts is chosen on validation rows, one for each family.
        schedule: of every training; its learning rate is not read.
        tasks: of the data; its cosine is not read.

    Raises:
        ConfigError: a family is unknown, or one of the lists is empty or has something twice.
    """

    families: tuple[str, ...]
    correlations: tuple[float, ...] = CORRELATIONS
    seeds: int = 8
    learning_rates: tuple[float, ...] = (3e-3, 1e-2)
    schedule: Schedule = field(default_factory=Schedule)
    tasks: SyntheticSpec = field(default_factory=lambda: SyntheticSpec(0.0))

    def __post_init__(self) -> None:
        for name, given in (
            ("families", self.families),
            ("correlations", self.correlations),
            ("learning rates", self.learning_rates),
        ):
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"correlation: {name}: {list(given)}; at least one is needed, each once")
        if unknown := [family for family in self.families if family not in known_families()]:
            raise ConfigError(f"correlation: families: {unknown} unknown; allowed: {', '.join(known_families())}")
        if self.seeds < 1 or self.schedule.steps < 1:
            raise ConfigError(f"correlation: {self.seeds} seeds, {self.schedule.steps} steps; at least 1 is needed")
        if not all(math.isfinite(rate) and rate > 0 for rate in self.learning_rates):
            raise ConfigError(f"correlation: learning rates: {list(self.learning_rates)}; each must be above 0")
        if self.tasks.train < self.schedule.batch_size:
            raise ConfigError(
                f"correlation: {self.tasks.train} training rows are less than a batch of {self.schedule.batch_size}"
            )
        for correlation in self.correlations:
            replace(self.tasks, cosine=correlation)

    @property
    def cell_settings(self) -> dict[str, Any]:
        """What decides the content of a cell beside its family, correlation and seed; plain data."""
        tasks = asdict(self.tasks)
        del tasks["cosine"]
        return {
            "steps": self.schedule.steps,
            "batch_size": self.schedule.batch_size,
            "learning_rates": list(self.learning_rates),
            "tasks": tasks,
        }


def cell_name(family: str, correlation: float, seed: int) -> str:
    """The name under which a cell is kept."""
    return f"{family}_p{correlation!r}_s{seed}"


def run_sweep(sweep: Sweep, store: CellStore, threads: int) -> None:
    """Compute the cells that the store lacks.

    Models of one family and seed are one batch: all correlations at once, which read the same inputs.

    Args:
        sweep: what to compute.
        store: filled as batches are done.
        threads: so many batches at a time, each on one core.
    """
    jobs = [
        (family, seed, missing)
        for seed in range(sweep.seeds)
        for family in sweep.families
        if (missing := [p for p in sweep.correlations if store.get(cell_name(family, p, seed)) is None])
    ]
    stop, before = threading.Event(), torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "sweep", initializer=_use_one_core)
    try:
        running: dict[Future[list[dict[str, Any]]], tuple[str, int]] = {
            pool.submit(_compute, sweep, family, seed, missing, stop): (family, seed) for family, seed, missing in jobs
        }
        for count, done in enumerate(as_completed(running), 1):
            family, seed = running[done]
            for cell in done.result():
                store.put(cell_name(family, cell["correlation"], seed), cell)
            log.info("%s, seed %d: done (%d of %d)", family, seed, count, len(jobs))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _use_one_core() -> None:
    """Of a worker thread: parallel are the batches, not the operations inside them, which are small."""
    torch.set_num_threads(1)
    # Moments of units that have died shrink to subnormal numbers, which cost a hundred times as much as others.
    torch.set_flush_denormal(True)


def _compute(
    sweep: Sweep, name: str, seed: int, correlations: Sequence[float], stop: threading.Event
) -> list[dict[str, Any]]:
    """The cells of one family and seed."""

    def check(step: int) -> None:
        del step
        if stop.is_set():
            raise RunFailed("the sweep was stopped")

    tasks = [generate(replace(sweep.tasks, cosine=correlation), seed) for correlation in correlations]
    family = synthetic_family(name, sweep.tasks.inputs)
    train = _rows([of.train for of in tasks])
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for rate in sweep.learning_rates:
        models = BatchedModels(family, [seed] * len(tasks))
        models.train(train, replace(sweep.schedule, learning_rate=rate), seed, check)
        by_rate[rate] = _scores(models, train, tasks)
    return [
        {
            "family": name,
            "correlation": correlation,
            "label_correlation": of.label_correlation,
            "seed": seed,
            "parameters": family.summary().total_parameters,
            "rates": [{"learning_rate": rate, **scores[index]} for rate, scores in by_rate.items()],
        }
        for index, (correlation, of) in enumerate(zip(correlations, tasks, strict=True))
    ]


def _rows(splits: Sequence[SyntheticRows]) -> BatchedRows:
    """The rows of tasks that share their inputs."""
    return BatchedRows(
        torch.from_numpy(splits[0].features), torch.from_numpy(np.stack([rows.labels for rows in splits]))
    )


def _scores(models: BatchedModels, train: BatchedRows, tasks: Sequence[SyntheticTasks]) -> list[dict[str, Any]]:
    """Of each model: mean losses of the tasks, on test rows each task's own, and how far apart their gates are."""
    validation = models.evaluate(_rows([of.validation for of in tasks]))
    test = models.evaluate(_rows([of.test for of in tasks]))
    trained = models.evaluate(train)
    distances = gate_distances(models.family, test.gates)
    return [
        {
            "validation_loss": _number(validation.losses[index].mean()),
            "test_loss": _number(test.losses[index].mean()),
            "train_loss": _number(trained.losses[index].mean()),
            "test_losses": {task: _number(test.losses[index, k]) for k, task in enumerate(TASKS)},
            **({} if distances is None else {"gate_distance": distances[index]}),
        }
        for index in range(len(tasks))
    ]


def _number(value: Tensor) -> float | None:
    """None of what is not finite, which JSON can't say: the training diverged."""
    found = value.item()
    return found if math.isfinite(found) else None


def choose_rates(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells as `correlation.json` holds them: with what each family reaches at its best learning rate.

    That is the rate with the least mean validation loss over all of the family's cells, so that one that fails now and
    then is charged with it.

    Raises:
        RunFailed: a family diverged at every rate.
    """
    by_family: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_family.setdefault(cell["family"], []).append(cell)
    found = []
    for family, of_family in by_family.items():
        losses = np.array([[score["validation_loss"] for score in cell["rates"]] for cell in of_family], dtype=float)
        means = np.where(np.isnan(losses), np.inf, losses).mean(axis=0)
        best = int(means.argmin())
        if not math.isfinite(means[best]):
            raise RunFailed(f"correlation: {family} diverged at every learning rate; give lower ones")
        found += [{**cell, **cell["rates"][best]} for cell in of_family]
    return found
