"""The ``selection:`` section: which version is the best, and when a task or the run stops early."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.strict_model import StrictModel

#: One metric for all tasks, or one per task; ``loss`` is a metric of every task.
MetricChoice = str | dict[str, str] | None


class EarlyStoppingConfig(StrictModel):
    """When a task that improves no more stops."""

    patience: int = Field(ge=1)
    """Evaluated versions in a row without improvement after which a task stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """What counts as an improvement: more than this beyond the best value so far."""
    metric: MetricChoice = None
    """The metric that is watched, of all tasks or per task; left out: that of `selection`."""
    when_stopped: Literal["freeze_head", "leave"] = "freeze_head"
    """What holds only stopped tasks (their heads; with `federation.mode: per_task` their models) is frozen.
    freeze_head: their clients go on training what they share with others. leave: clients all of whose tasks have
    stopped are asked only to evaluate; one that has other tasks too goes on with all of them."""
    stop_run: Literal["all", "any", "never"] = "all"
    """The run ends when every task has stopped, when one has, or not before `run.rounds` (what several tasks share is
    then trained to the end, and only slots of a single stopped task are frozen)."""


class SelectionConfig(StrictModel):
    """Which version is the best."""

    metric: MetricChoice = None
    """The metric by which a version is judged, of all tasks or per task; left out: each task's primary metric."""
    overall: str = "mean"
    """The best version for the run as a whole: by the mean over the tasks (of a metric of which less is better counts
    1 / (1 + value)), or that of the task named here."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop tasks, and the run, when they improve no more; left out: all run to `run.rounds`."""
