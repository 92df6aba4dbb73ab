"""The coordinator: every decision of a run, as a pure state machine (events in, commands out).

No socket, clock, file or tensor is touched here; a deadline is an event. `server.federation` carries out
the commands. The life of a run::

    GATHERING ──enough clients──> TRAINING ──all answered, or deadline with quorum──> REDUCING
        ^                            │  no quorum: repeated, up to max_attempts          │
        └────────────────────────────┘                                                   │ Aggregated
        ^                                                                                │
        └────────────── next round ──────────────────────────────────────────────────────┤
                                                    after the last: EVALUATING ──> DONE <┘
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from server.coordination import (
    Acknowledge,
    Aggregate,
    Aggregated,
    BeginRound,
    CancelTimer,
    Command,
    Crashed,
    Dismiss,
    Dispatch,
    EvaluationArrived,
    EvaluationsComplete,
    Event,
    Finish,
    Joined,
    Left,
    Note,
    RefuseUpdate,
    StartTimer,
    StopRequested,
    TimerFired,
    UpdateArrived,
    UpdateDeclined,
)
from server.round import Examples, Quorum, Round

CohortSampler = Callable[[frozenset[str], int], frozenset[str]]


class Phase(Enum):
    """Where a run stands."""

    GATHERING = "gathering"
    TRAINING = "training"
    REDUCING = "reducing"
    EVALUATING = "evaluating"
    DONE = "done"


DEADLINE: Final = "round-deadline"
GATHER: Final = "gather"


@dataclass(frozen=True)
class Rules:
    """What the operator decided; see `server.config.FederationConfig` for the meaning of each."""

    target_rounds: int
    tasks: frozenset[str]
    min_clients: int = 1
    min_clients_per_task: int = 0
    quorum: Quorum = field(default_factory=Quorum)
    deadline_s: float | None = None
    grace_s: float = 15.0
    gather_timeout_s: float | None = 600.0
    max_attempts: int = 3
    evaluate: Literal["all", "cohort", "none"] = "all"
    evaluate_every: int = 1


class Coordinator:
    """Decides; see the module. `handle` is the only way in.

    Args:
        rules: what the operator decided.
        sample: (connected clients, round) to the cohort of that round; pure.
        version: the committed version to go on from (0 in a new run).
    """

    def __init__(self, rules: Rules, sample: CohortSampler, version: int = 0) -> None:
        self.rules = rules
        self.phase = Phase.GATHERING
        self.version = version
        self.round: Round | None = None
        self._sample = sample
        self._connected: dict[str, frozenset[str]] = {}
        self._attempt = 1
        self._deadline = DEADLINE
        #: Updates accepted in an attempt that missed its quorum, and their clients' tasks.
        self._kept: dict[str, Examples] = {}
        self._kept_tasks: dict[str, frozenset[str]] = {}

    def restore(self, kept: Mapping[str, tuple[frozenset[str], Examples]]) -> None:
        """Count updates of the coming round that were accepted before: client id to (tasks, examples)."""
        self._kept = {client_id: examples for client_id, (_, examples) in sorted(kept.items())}
        self._kept_tasks = {client_id: tasks for client_id, (tasks, _) in kept.items()}

    @property
    def connected(self) -> Mapping[str, frozenset[str]]:
        """The clients that take part now, with their tasks."""
        return dict(self._connected)

    def handle(self, event: Event) -> list[Command]:
        """Take one event; returns what is to be done, in order."""
        if self.phase is Phase.DONE:
            return []
        match event:
            case Joined(client_id, tasks):
                return self._joined(client_id, tasks)
            case Left(client_id, for_good):
                return self._left(client_id, for_good)
            case UpdateArrived(client_id, round_id, examples):
                return self._update(client_id, round_id, examples)
            case UpdateDeclined(client_id, round_id, reason):
                return self._declined(client_id, round_id, reason)
            case EvaluationArrived(client_id, version):
                return self._evaluated(client_id, version)
            case TimerFired(name):
                return self._timer(name)
            case Aggregated(version):
                return self._aggregated(version)
            case StopRequested(reason):
                return self._finish("stopped", reason)
            case Crashed(reason):
                return self._finish("failed", reason)

    def admission(self, client_id: str, round_id: int) -> tuple[Literal["wanted", "duplicate", "refused"], str, str]:
        """Whether an announced update is wanted, before its bytes come: (verdict, error code, reason)."""
        current = self.round
        if current is not None and round_id == current.round_id and self.phase is Phase.TRAINING:
            if current.expects_update(client_id):
                return ("wanted", "", "")
            if client_id in current.answered:
                return ("duplicate", "", "")
            return ("refused", "not_asked", f"round {round_id} does not expect an update of {client_id}")
        if current is not None and round_id == current.round_id and client_id in current.answered:
            return ("duplicate", "", "")
        if current is None and round_id == self.version + 1 and client_id in self._kept:
            return ("duplicate", "", "")
        if round_id <= self.version or (current is not None and round_id <= current.round_id):
            return ("refused", "stale_round", f"round {round_id} is over")
        return ("refused", "future_round", f"round {round_id} has not begun")

    # --- membership

    def _joined(self, client_id: str, tasks: frozenset[str]) -> list[Command]:
        self._connected[client_id] = tasks
        if self.phase is Phase.GATHERING:
            return self._begin_if_enough()
        commands: list[Command] = [CancelTimer(_grace(client_id))]
        if self.round is not None and client_id in self.round.seated:
            commands.append(self._dispatch(self.round, client_id))
        return commands

    def _left(self, client_id: str, for_good: bool) -> list[Command]:
        self._connected.pop(client_id, None)
        if self.round is None or client_id not in self.round.seated:
            return []
        if for_good or self.rules.grace_s == 0:
            return self._lost(client_id)
        return [StartTimer(_grace(client_id), self.rules.grace_s)]

    def _lost(self, client_id: str) -> list[Command]:
        if self.round is None or client_id not in self.round.seated:
            return []
        self.round.give_up(client_id)
        return [
            Note(f"round {self.round.round_id} goes on without {client_id}: it is gone", "warning"),
            *self._close_if_complete(),
        ]

    def _missing(self) -> str | None:
        """What keeps a round from starting, or None."""
        if len(self._connected) < self.rules.min_clients:
            return f"{len(self._connected)} of {self.rules.min_clients} clients"
        for task in sorted(self.rules.tasks):
            have = sum(1 for tasks in self._connected.values() if task in tasks)
            if have < self.rules.min_clients_per_task:
                return f"{have} of {self.rules.min_clients_per_task} clients for task {task}"
        return None

    # --- rounds

    def _begin_if_enough(self) -> list[Command]:
        missing = self._missing()
        if missing is not None:
            return [Note(f"waiting for clients: {missing}")]
        commands: list[Command] = [CancelTimer(GATHER)]
        if self.version >= self.rules.target_rounds:
            return commands + self._begin_final_evaluation()
        round_id = self.version + 1
        everybody = frozenset(self._connected)
        cohort = self._sample(everybody, round_id) | frozenset(self._kept)
        trainers = {c: self._connected[c] for c in sorted(cohort) if c in self._connected}
        trainers |= {c: self._kept_tasks[c] for c in self._kept if c not in trainers}
        evaluators = self._evaluators(everybody, cohort)
        self.round = Round(round_id, trainers, evaluators, answered=dict(self._kept))
        self.phase = Phase.TRAINING
        commands.append(BeginRound(round_id, self._attempt, frozenset(trainers), evaluators))
        commands += [self._dispatch(self.round, client_id) for client_id in sorted(self.round.seated)]
        commands += self._start_deadline()
        # Nobody has a seat when every client that is asked has answered in an earlier attempt.
        return commands + self._close_if_complete()

    def _evaluators(self, everybody: frozenset[str], cohort: frozenset[str]) -> frozenset[str]:
        """Who evaluates the current version in the round that is about to begin."""
        due = self.version % self.rules.evaluate_every == 0 and self._attempt == 1
        if not due or self.rules.evaluate == "none":
            return frozenset()
        return everybody if self.rules.evaluate == "all" or self.version == 0 else cohort & everybody

    def _start_deadline(self) -> list[Command]:
        if self.rules.deadline_s is None:
            return []
        # A name of its own for each attempt: a deadline that ran out just as its attempt closed means nothing later.
        self._deadline = f"{DEADLINE}:{self.version + 1}.{self._attempt}"
        return [StartTimer(self._deadline, self.rules.deadline_s)]

    def _begin_final_evaluation(self) -> list[Command]:
        evaluators = frozenset(self._connected) if self.rules.evaluate != "none" else frozenset[str]()
        self.round = Round(self.version + 1, {}, evaluators)
        self.phase = Phase.EVALUATING
        commands: list[Command] = [self._dispatch(self.round, client_id) for client_id in sorted(evaluators)]
        return commands + self._start_deadline() + self._close_if_complete()

    def _dispatch(self, current: Round, client_id: str) -> Dispatch:
        return Dispatch(
            client_id,
            current.round_id,
            current.version,
            train=current.expects_update(client_id),
            evaluate=current.expects_evaluation(client_id),
        )

    def _update(self, client_id: str, round_id: int, examples: Examples) -> list[Command]:
        verdict, code, reason = self.admission(client_id, round_id)
        match verdict:
            case "refused":
                return [RefuseUpdate(client_id, round_id, code, reason)]
            case "duplicate":
                return [Acknowledge(client_id, round_id, duplicate=True)]
            case "wanted":
                assert self.round is not None
                self.round.accept_update(client_id, examples)
                return [Acknowledge(client_id, round_id, duplicate=False), *self._close_if_complete()]

    def _declined(self, client_id: str, round_id: int, reason: str) -> list[Command]:
        if self.round is None or round_id != self.round.round_id or client_id not in self.round.seated:
            return []
        self.round.give_up(client_id)
        return [
            Note(f"round {round_id} goes on without {client_id}: {reason}", "warning"),
            *self._close_if_complete(),
        ]

    def _evaluated(self, client_id: str, version: int) -> list[Command]:
        if self.round is None or version != self.round.version:
            return []
        self.round.accept_evaluation(client_id)
        return self._close_if_complete()

    def _timer(self, name: str) -> list[Command]:
        if name == self._deadline and self.phase in (Phase.TRAINING, Phase.EVALUATING):
            return self._close("the deadline passed")
        if name == GATHER and self.phase is Phase.GATHERING and (missing := self._missing()) is not None:
            return self._finish("failed", f"not enough clients came back in time: {missing}")
        if name.startswith(_grace("")):
            client_id = name.removeprefix(_grace(""))
            if client_id not in self._connected:
                return self._lost(client_id)
        return []

    def _close_if_complete(self) -> list[Command]:
        if self.round is None or not self.round.complete or self.phase not in (Phase.TRAINING, Phase.EVALUATING):
            return []
        return self._close("nobody is left to wait for")

    def _close(self, why: str) -> list[Command]:
        assert self.round is not None
        current = self.round
        late = current.seated
        commands: list[Command] = [CancelTimer(self._deadline), *(CancelTimer(_grace(c)) for c in sorted(late))]
        if late:
            commands.append(Note(f"round {current.round_id} left {', '.join(sorted(late))} behind: {why}", "warning"))
            commands.append(Dismiss(late, current.round_id, why))
        for client_id in late:
            current.give_up(client_id)
        commands.append(EvaluationsComplete(current.version))
        if self.phase is Phase.EVALUATING:
            return commands + self._finish("finished", f"all {self.rules.target_rounds} rounds are done")
        if not current.has_quorum(self.rules.quorum):
            return commands + self._repeat(current)
        self.phase = Phase.REDUCING
        self._kept = {}
        self._attempt = 1
        return [*commands, Aggregate(current.round_id, dict(sorted(current.answered.items())))]

    def _repeat(self, current: Round) -> list[Command]:
        """Another attempt at the same round; accepted updates stay, as they start from the same version."""
        came = f"{len(current.answered)} of {len(current.trainers)} updates came"
        if self._attempt >= self.rules.max_attempts:
            return self._finish("failed", f"round {current.round_id} missed its quorum {self._attempt} times ({came})")
        self._attempt += 1
        self._kept = dict(current.answered)
        self._kept_tasks = {client_id: current.trainers[client_id] for client_id in current.answered}
        self.round = None
        self.phase = Phase.GATHERING
        note = Note(f"round {current.round_id} missed its quorum ({came}): attempt {self._attempt}", "warning")
        return [note, *self._gather()]

    def _aggregated(self, version: int) -> list[Command]:
        if self.phase is not Phase.REDUCING or version != self.version + 1:
            return []
        self.version = version
        self.round = None
        self.phase = Phase.GATHERING
        return self._gather()

    def _gather(self) -> list[Command]:
        if self.version >= self.rules.target_rounds:
            return self._begin_final_evaluation()
        if self._missing() is None:
            return self._begin_if_enough()
        commands = self._begin_if_enough()
        if self.rules.gather_timeout_s is not None:
            commands.append(StartTimer(GATHER, self.rules.gather_timeout_s))
        return commands

    def _finish(self, state: Literal["finished", "failed", "stopped"], reason: str) -> list[Command]:
        self.phase = Phase.DONE
        return [CancelTimer(self._deadline), CancelTimer(GATHER), Finish(state, reason)]


def _grace(client_id: str) -> str:
    return f"grace:{client_id}"
