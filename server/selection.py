"""Which version is the best, and which tasks have stopped: pure, from the results of the versions judged so far.

A version is judged once, when no further evaluation of it is awaited, and by what had come by then. Everything here
follows from those judgements, so a server that is started again comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from common.errors import ConfigError
from common.metrics import LOWER_IS_BETTER
from common.tasks import TaskSpec
from server.selection_config import EarlyStoppingConfig, MetricChoice, SelectionConfig

LOSS: Final = "loss"
#: Where the summary shows the best version of the run as a whole, beside those of the tasks.
OVERALL: Final = "overall"
MEAN: Final = "mean"

#: Version to task to metric (``loss`` among them) to value.
Judgements = Mapping[int, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Selection:
    """How versions are compared.

    Attributes:
        metrics: task to the metric by which its versions are judged.
        overall: ``mean``, or the task that decides for all.
        watched: task to the metric that early stopping looks at.
        stopping: when tasks stop; None: never.
    """

    metrics: Mapping[str, str]
    overall: str = MEAN
    watched: Mapping[str, str] = field(default_factory=dict)
    stopping: EarlyStoppingConfig | None = None

    @classmethod
    def of(cls, config: SelectionConfig, specs: Mapping[str, TaskSpec], source: str) -> Selection:
        """The selection that a configuration means.

        Raises:
            ConfigError: a task or metric that this run does not have; names file, key, value and what is allowed.
        """
        key = f"{source}: selection"
        if config.overall != MEAN and config.overall not in specs:
            raise ConfigError(
                f"{key}.overall: allowed are mean, {', '.join(sorted(specs))} (found: {config.overall!r})"
            )
        metrics = _chosen(config.metric, specs, f"{key}.metric", {task: s.primary_metric for task, s in specs.items()})
        stopping = config.early_stopping
        given = None if stopping is None else stopping.metric
        return cls(metrics, config.overall, _chosen(given, specs, f"{key}.early_stopping.metric", metrics), stopping)

    def best(self, judged: Judgements) -> dict[str, dict[str, Any]]:
        """Task (and ``overall``) to its best version, metric and value there; of equal ones the first.

        For the mean a version counts as far as others do: one on which more tasks were judged is before one with fewer.
        """
        found: dict[str, dict[str, Any]] = {}
        for task, metric in self.metrics.items():
            values = _series(judged, task, metric)
            if values:
                _, before_others = max((_upward(metric, value), -version) for version, value in values.items())
                version = -before_others
                found[task] = {"version": version, "metric": metric, "value": values[version]}
        if self.overall != MEAN:
            return found | ({OVERALL: dict(found[self.overall])} if self.overall in found else {})
        means = {version: mean for version in judged if (mean := self._mean(judged[version]))}
        if means:
            version = max(means, key=lambda v: (means[v], -v))
            found[OVERALL] = {"version": version, "metric": MEAN, "value": means[version][1]}
        return found

    def _mean(self, results: Mapping[str, Mapping[str, float]]) -> tuple[int, float] | None:
        """How many tasks were judged, and the mean of their scores."""
        scores = [
            _score(metric, results[task][metric])
            for task, metric in self.metrics.items()
            if metric in results.get(task, {})
        ]
        return (len(scores), math.fsum(scores) / len(scores)) if scores else None

    def stopped(self, judged: Judgements, up_to: int) -> dict[str, int]:
        """The tasks that have stopped, with the version whose result was one too many; versions after `up_to` are
        not looked at. A task that has stopped stays so."""
        if self.stopping is None:
            return {}
        found: dict[str, int] = {}
        for task, metric in self.watched.items():
            best, waited = -math.inf, 0
            for version, value in sorted(_series(judged, task, metric).items()):
                if version > up_to:
                    break
                now = _upward(metric, value)
                if now > best + self.stopping.min_delta:
                    best, waited = now, 0
                else:
                    waited += 1
                if waited >= self.stopping.patience:
                    found[task] = version
                    break
        return found

    def end(self, stopped: Mapping[str, int]) -> str:
        """Why the run ends now; empty when it goes on."""
        if self.stopping is None or not stopped:
            return ""
        when = ", ".join(f"{task} at version {version}" for task, version in sorted(stopped.items()))
        match self.stopping.stop_run:
            case "any":
                return f"a task has stopped improving: {when}"
            case "all":
                return f"every task has stopped improving: {when}" if stopped.keys() >= self.watched.keys() else ""
            case "never":
                return ""


def _series(judged: Judgements, task: str, metric: str) -> dict[int, float]:
    """Version to the value of one metric, where it was measured."""
    return {v: tasks[task][metric] for v, tasks in judged.items() if metric in tasks.get(task, {})}


def _is_lower_better(metric: str) -> bool:
    return metric == LOSS or metric in LOWER_IS_BETTER


def _upward(metric: str, value: float) -> float:
    """The value, turned so that more is better."""
    return -value if _is_lower_better(metric) else value


def _score(metric: str, value: float) -> float:
    """The value as a part of a mean: errors, which have no upper bound, become 1 / (1 + error)."""
    return 1.0 / (1.0 + max(0.0, value)) if _is_lower_better(metric) else value


def _chosen(given: MetricChoice, specs: Mapping[str, TaskSpec], key: str, default: Mapping[str, str]) -> dict[str, str]:
    """A metric for each task."""
    wanted = dict.fromkeys(specs, given) if isinstance(given, str) else {**default, **(given or {})}
    if unknown := sorted(wanted.keys() - specs.keys()):
        raise ConfigError(f"{key}: no task {', '.join(unknown)}; this run has {', '.join(sorted(specs))}")
    for task, metric in wanted.items():
        allowed = [*specs[task].metrics, LOSS]
        if metric not in allowed:
            raise ConfigError(f"{key}: task {task} has the metrics {', '.join(allowed)} (found: {metric!r})")
    return wanted
