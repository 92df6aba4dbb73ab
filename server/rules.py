"""What the operator decided about a run, as the coordinator reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from server.cohort import Cohort
from server.round import Examples, Quorum

CohortSampler = Callable[[frozenset[str], int], Cohort]


@dataclass(frozen=True)
class Rules:
    """What the operator decided; see `server.config.FederationConfig` for the meaning of each.

    `max_staleness` is None for synchronous rounds, which refuse late updates.
    """

    target_rounds: int
    tasks: frozenset[str]
    min_clients: int = 1
    min_clients_per_task: int = 0
    quorum: Quorum = field(default_factory=Quorum)
    deadline_s: float | None = None
    grace_s: float = 15.0
    gather_timeout_s: float | None = 600.0
    max_attempts: int = 3
    lost_quorum: Literal["pause", "fail"] = "pause"
    evaluate: Literal["all", "cohort", "none"] = "all"
    evaluate_every: int = 1
    screen: bool = False
    max_staleness: int | None = None
    quarantine_after: int = 0
    quarantine_rounds: int = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """An accepted update of a round that is not open: of an attempt without quorum, late, or from before a restart."""

    tasks: frozenset[str]
    examples: Examples
    staleness: int = 0
