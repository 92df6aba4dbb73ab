"""The coordinator: every decision of a run, as a pure state machine (events in, commands out).

No socket, clock, file or tensor is touched here; a deadline is an event. `server.federation` carries out
the commands. The life of a run::

    GATHERING ──enough clients──> TRAINING ──enough answered, or deadline with quorum──> SCREENING ──> REDUCING
        ^                            │  no quorum: repeated, up to max_attempts              │             │
        └────────────────────────────┴───────────────────────────────────────────────────────┘             │
        ^                                                                                       Aggregated │
        └────────────── next round ────────────────────────────────────────────────────────────────────────┤
                                                                      after the last: EVALUATING ──> DONE <┘

A client whose tasks have **nothing to train** under the plan of a round (`server.outlook`) is asked to evaluate at
most, and no round waits for an update of it. Where nothing is left to train at all, or the tasks have stopped
improving, the version in hand is evaluated as the last one.

A **pause** (an operator's, a full disk, a quorum missed too often, a model that would not be finite) stops rounds from
beginning and closing, whatever the phase; updates are still taken. Screening is skipped unless configured.

**Asynchronous** rounds (buffered aggregation as FedBuff, Nguyen et al. 2021, arXiv 2106.06639) close when the buffer
is full. Clients that have not answered by then are left at work, and their late updates count in the round they arrive
in, with their staleness. A client counts once per version and gets new work with the next version.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, Literal

from server.coordination import (
    Acknowledge,
    Aggregate,
    Aggregated,
    AggregationFailed,
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
    Paused,
    PauseKind,
    Quarantine,
    RefuseUpdate,
    Released,
    Resumed,
    Screen,
    Screened,
    StartTimer,
    StopRequested,
    Strike,
    TimerFired,
    Unpaused,
    UpdateArrived,
    UpdateDeclined,
    UpdateDelayed,
    UpdateRefused,
)
from server.outlook import Outlook
from server.quarantine import BAD_UPDATES, QuarantineList
from server.round import Examples, Round
from server.rules import CohortSampler, Kept, Rules

Verdict = tuple[Literal["wanted", "duplicate", "refused"], str, str]


class Phase(Enum):
    """Where a run stands."""

    GATHERING = "gathering"
    TRAINING = "training"
    SCREENING = "screening"
    REDUCING = "reducing"
    EVALUATING = "evaluating"
    DONE = "done"


DEADLINE: Final = "round-deadline"
GATHER: Final = "gather"
_OPEN: Final = (Phase.TRAINING, Phase.EVALUATING)
_CLOSING: Final = (Phase.SCREENING, Phase.REDUCING)


class Coordinator:
    """Decides; see the module. `handle` is the only way in.

    Args:
        rules: what the operator decided.
        sample: (clients that may be asked, round) to the cohort of that round; pure.
        version: the committed version to go on from (0 in a new run).
        outlook: what can be done from that version; None: every task has something to train.

    Attributes:
        pauses: why the run stands still; empty when it does not.
        quarantine: who is left out for a while.
    """

    def __init__(self, rules: Rules, sample: CohortSampler, version: int = 0, outlook: Outlook | None = None) -> None:
        self.rules = rules
        self.outlook = outlook or Outlook(rules.tasks)
        self.phase = Phase.GATHERING
        self.version = version
        self.round: Round | None = None
        self.pauses: dict[PauseKind, str] = {}
        self.quarantine = QuarantineList(rules.quarantine_after, rules.quarantine_rounds)
        self._sample = sample
        self._connected: dict[str, frozenset[str]] = {}
        self._attempt = 1
        self._deadline = DEADLINE
        #: Updates that count in the coming round already.
        self._kept: dict[str, Kept] = {}
        #: The newest round of which each client's update was taken, and what that was before the coming version's.
        self._counted: dict[str, int] = {}
        self._counted_before: dict[str, int] = {}
        #: The newest round that each client was asked to train, by this process.
        self._asked: dict[str, int] = {}
        self._has_begun = False
        #: Clients at work on an older round, with that round and their tasks; asynchronous rounds only.
        self._busy: dict[str, tuple[int, frozenset[str]]] = {}
        #: Clients whose connection broke, for as long as their seats are kept: rounds count on them meanwhile, so that
        #: the cohort does not depend on who is away for a moment.
        self._away: dict[str, frozenset[str]] = {}
        #: A round that had begun before this process, and who took part in it then.
        self._begun_before: tuple[int, frozenset[str]] = (0, frozenset())
        #: Clients whose update could not be stored: they are asked again when there is room.
        self._delayed: set[str] = set()
        #: Late updates that came while a round was closing: which round they count in is known only after that.
        self._deferred: list[UpdateArrived] = []

    def restore(
        self,
        kept: Mapping[str, Kept],
        counted: Mapping[str, int],
        present: Mapping[str, frozenset[str]] | None = None,
        begun: int = 0,
    ) -> None:
        """Go on from what a process before this one accepted; `Resumed` starts the time for clients to come back.

        Args:
            kept: client id to its update of the coming round.
            counted: client id to the newest round of which its update was taken.
            present: who took part when the newest round began, with their tasks.
            begun: that round.
        """
        self._kept = dict(sorted(kept.items()))
        trained = {client_id: self.version + 1 - update.staleness for client_id, update in kept.items()}
        self._counted_before = {c: number for c, number in counted.items() if number != trained.get(c)}
        self._counted = {**counted, **trained}
        self._away = dict(sorted((present or {}).items()))
        self._begun_before = (begun, frozenset(self._away))

    @property
    def connected(self) -> Mapping[str, frozenset[str]]:
        """The clients that take part now, with their tasks."""
        return dict(self._connected)

    @property
    def away(self) -> frozenset[str]:
        """The clients that may come back to their seats."""
        return frozenset(self._away)

    def handle(self, event: Event) -> list[Command]:
        """Take one event; returns what is to be done, in order."""
        if self.phase is Phase.DONE:
            return []
        match event:
            case Resumed():
                return [StartTimer(_grace(client_id), self.rules.grace_s) for client_id in self._away]
            case Joined(client_id, tasks):
                return self._joined(client_id, tasks)
            case Left(client_id, for_good):
                return self._left(client_id, for_good)
            case UpdateArrived(client_id, round_id, examples):
                return self._update(client_id, round_id, examples)
            case UpdateDeclined(client_id, round_id, reason):
                return self._go_without(client_id, round_id, reason)
            case UpdateRefused(client_id, round_id, code, reason):
                commands = self._strike(client_id, code, reason)
                commands += self._go_without(client_id, round_id, f"its update was refused: {code}: {reason}")
                if self.round is not None and self.quarantine.holds(client_id, self.version):
                    # Bad was an update of an older round; it may have a seat in this one.
                    commands += self._go_without(client_id, self.round.round_id, "it is in quarantine")
                return commands
            case UpdateDelayed(client_id, round_id):
                return self._delay(client_id, round_id)
            case EvaluationArrived(client_id, version):
                return self._evaluated(client_id, version)
            case TimerFired(name):
                return self._timer(name)
            case Screened(round_id, outliers):
                return self._screened(round_id, outliers)
            case Aggregated(version, outlook):
                return self._aggregated(version, outlook or self.outlook)
            case AggregationFailed(round_id, reason):
                return self._unsound(round_id, reason)
            case Paused(kind, reason):
                return self._pause(kind, reason)
            case Unpaused(kind):
                return self._unpause(kind)
            case Released(client_id):
                return self._release(client_id)
            case StopRequested(reason):
                return self._finish("stopped", reason)
            case Crashed(reason):
                return self._finish("failed", reason)

    # --- which updates are wanted

    def admission(self, client_id: str, round_id: int) -> Verdict:
        """Whether an announced update is wanted, before its bytes come: (verdict, error code, reason)."""
        current = self.round
        if self._counted.get(client_id) == round_id:
            return ("duplicate", "", "")
        if self.quarantine.holds(client_id, self.version):
            until = self.quarantine.until(client_id)
            return ("refused", "quarantined", f"too many bad updates: {client_id} is not asked before version {until}")
        if current is not None and round_id == current.round_id and self.phase is Phase.TRAINING:
            # Late in its own round: it was left at work when an attempt missed its quorum.
            if current.expects_update(client_id) or current.expects_late_update(client_id):
                return ("wanted", "", "")
            return ("refused", "not_asked", f"round {round_id} does not expect an update of {client_id}")
        newest = self.version if current is None else current.round_id
        at_work = self._busy.get(client_id, (0, frozenset[str]()))[0]
        if round_id > newest and round_id != at_work:
            return ("refused", "future_round", f"round {round_id} has not begun")
        if self._takes_late(client_id, round_id):
            return ("wanted", "", "")
        return ("refused", "stale_round", f"round {round_id} is over")

    def counted(self, client_id: str) -> int:
        """The newest round of which a client's update was taken, 0 for none."""
        return self._counted.get(client_id, 0)

    @property
    def counts_in(self) -> int:
        """The round in which an update that is accepted now counts."""
        return self.version + 1

    @property
    def spool_round(self) -> int:
        """The round in whose folder an update that arrives now is written.

        While a round closes its folder must stay as it is: what is in there is being folded.
        """
        return self.version + (2 if self.phase in _CLOSING else 1)

    def _takes_late(self, client_id: str, round_id: int) -> bool:
        limit = self.rules.max_staleness
        if limit is None or self.counts_in - round_id > limit or self.phase is Phase.EVALUATING:
            return False
        if round_id <= self._counted.get(client_id, 0):
            return False  # it counted, before one that counted later
        if self.phase is Phase.TRAINING:
            assert self.round is not None
            # One that came back was given new work, as nobody could know that it had finished the old.
            return self.round.expects_late_update(client_id) or self.round.expects_update(client_id)
        begun, then = self._begun_before
        asked = self._asked.get(client_id) == round_id or (client_id in then and round_id <= begun)
        waits = client_id in self._kept or any(update.client_id == client_id for update in self._deferred)
        return asked and not waits

    def _update(self, client_id: str, round_id: int, examples: Examples) -> list[Command]:
        verdict, code, reason = self.admission(client_id, round_id)
        counts_in = self.counts_in
        match verdict:
            case "refused":
                return [RefuseUpdate(client_id, round_id, code, reason)]
            case "duplicate":
                return [Acknowledge(client_id, round_id, duplicate=True, counts_in=counts_in)]
            case "wanted" if self.phase in _CLOSING:
                self._deferred.append(UpdateArrived(client_id, round_id, examples))
                return []
            case "wanted":
                self._counted_before[client_id] = self._counted.get(client_id, 0)
                self._counted[client_id] = round_id
                self._delayed.discard(client_id)
                _, tasks = self._busy.pop(client_id, (0, self._connected.get(client_id, frozenset(examples))))
                commands: list[Command] = [Acknowledge(client_id, round_id, duplicate=False, counts_in=counts_in)]
                if self.phase is not Phase.TRAINING:
                    self._kept[client_id] = Kept(tasks, examples, counts_in - round_id)
                    return commands
                assert self.round is not None
                if round_id != self.round.round_id and self.round.expects_update(client_id):
                    commands.append(Dismiss(frozenset({client_id}), counts_in, "its late update counts in this round"))
                self.round.accept_update(client_id, examples, counts_in - round_id)
                return commands + self._close_if_complete()

    def _take_deferred(self) -> list[Command]:
        """Decide on the updates that came while a round was closing."""
        waiting, self._deferred = self._deferred, []
        return [command for event in waiting for command in self.handle(event)]

    def _go_without(self, client_id: str, round_id: int, reason: str) -> list[Command]:
        """A client that was asked will not answer."""
        busy = self._busy.get(client_id)
        if busy is not None and busy[0] == round_id:
            del self._busy[client_id]
        elif self.round is None or round_id != self.round.round_id:
            return []
        if self.round is None or client_id not in self.round.seated:
            return []
        self.round.give_up(client_id)
        return [
            Note(f"round {self.round.round_id} goes on without {client_id}: {reason}", "warning"),
            *self._close_if_complete(),
        ]

    def _delay(self, client_id: str, round_id: int) -> list[Command]:
        if self.round is None or round_id > self.round.round_id:
            return []
        if client_id not in self.round.seated and client_id not in self._busy:
            return []
        self._delayed.add(client_id)
        # The room may have come back before this event was handled.
        return [] if self.pauses else [*self._ask_delayed(), *self._close_if_complete()]

    def _ask_delayed(self) -> list[Command]:
        """Ask for the updates that could not be stored; a client that still has its update sends it at once."""
        if self.round is None or self.phase not in _OPEN:
            return []  # with the next round they get new work
        asked, self._delayed = self._delayed, set()
        commands: list[Command] = []
        for client_id in sorted(asked & self.round.seated & self._connected.keys()):
            if self.round.expects_late_update(client_id):
                self._begin_anew(self.round, client_id)
            if client_id in self.round.seated:
                commands.append(self._dispatch(self.round, client_id))
        return commands

    # --- bad clients

    def _strike(self, client_id: str, code: str, reason: str) -> list[Command]:
        if code not in BAD_UPDATES:
            return []
        until = self.quarantine.strike(client_id, self.version + 1, code)
        strike = Strike(client_id, self.version + 1)
        if not until:
            return [strike]
        text = f"{client_id} is in quarantine until version {until}: too many bad updates, at last {code}: {reason}"
        return [strike, Quarantine(client_id, until, f"{code}: {reason}"), Note(text, "warning")]

    def _release(self, client_id: str) -> list[Command]:
        self.quarantine.release(client_id)
        lifted: list[Command] = [Quarantine(client_id, 0, "released by an operator")]
        return lifted + (self._begin_if_enough() if self.phase is Phase.GATHERING else [])

    # --- membership

    def _joined(self, client_id: str, tasks: frozenset[str]) -> list[Command]:
        self._connected[client_id] = tasks
        self._delayed.discard(client_id)
        commands: list[Command] = []
        if self._away.pop(client_id, None) is not None:
            commands.append(CancelTimer(_grace(client_id)))
        if self.phase is Phase.GATHERING:
            return commands + self._begin_if_enough()
        if self.round is None:
            return commands
        if self.phase in _CLOSING:
            # It may have lost its work: it gets new work with the next round.
            self._busy.pop(client_id, None)
        if self.round.expects_late_update(client_id):
            # Whether it still has its old work nobody knows; should that come, it counts instead.
            self._begin_anew(self.round, client_id)
        if client_id in self.round.seated:
            commands.append(self._dispatch(self.round, client_id))
        return commands + self._close_if_complete()

    def _begin_anew(self, current: Round, client_id: str) -> None:
        """A client that was at older work trains in this round instead, if it has anything to train."""
        self._busy.pop(client_id, None)
        tasks = self._connected[client_id]
        if tasks & self.outlook.trained:
            current.begin_anew(client_id, tasks)
        else:
            current.give_up(client_id)

    def _left(self, client_id: str, for_good: bool) -> list[Command]:
        tasks = self._connected.pop(client_id, None)
        if tasks is None:
            return []
        if for_good or self.rules.grace_s == 0:
            return self._lost(client_id)
        self._away[client_id] = tasks
        return [StartTimer(_grace(client_id), self.rules.grace_s)]

    def _lost(self, client_id: str) -> list[Command]:
        self._busy.pop(client_id, None)
        self._away.pop(client_id, None)
        if self.phase is Phase.GATHERING:
            return self._begin_if_enough()
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
        eligible = self._eligible
        if self._is_last or self._kept or self._able(eligible) or self._busy.keys() & eligible:
            return None
        if eligible:
            return f"none of the {len(eligible)} clients has anything to train in round {self.version + 1}"
        return f"{len(self._connected)} clients are connected, all of them in quarantine"

    @property
    def _is_last(self) -> bool:
        """Whether no round follows the version in hand."""
        return self.version >= self.rules.target_rounds or bool(self.outlook.end)

    def _able(self, clients: frozenset[str]) -> frozenset[str]:
        """Those of some clients that have something to train in the coming round."""
        return frozenset(c for c in clients if self._tasks[c] & self.outlook.trained)

    @property
    def _eligible(self) -> frozenset[str]:
        """The clients that may be asked: connected, or away for a moment."""
        begun, then = self._begun_before
        everybody = frozenset(self._tasks)
        if begun == self.version + 1 and everybody & then:
            # The round had begun when the server died: with those who were there, not with who has come since.
            everybody &= then
        return frozenset(c for c in everybody if not self.quarantine.holds(c, self.version))

    @property
    def _tasks(self) -> dict[str, frozenset[str]]:
        """Everybody who takes part, with their tasks."""
        return {**self._away, **self._connected}

    # --- pauses

    def _pause(self, kind: PauseKind, reason: str) -> list[Command]:
        known = self.pauses.get(kind)
        self.pauses[kind] = reason
        if known is not None:
            return []
        return [Note(f"the run is paused: {reason}", "warning"), CancelTimer(self._deadline), CancelTimer(GATHER)]

    def _unpause(self, kind: PauseKind) -> list[Command]:
        was_paused = bool(self.pauses)
        # Only room on the disk ends the want of it; an operator ends everything else.
        lifted = {"storage"} if kind == "storage" else {"operator", "quorum", "unsound"}
        self.pauses = {other: reason for other, reason in self.pauses.items() if other not in lifted}
        if not was_paused:
            return []
        if self.pauses:
            return [Note(f"the run stays paused: {'; '.join(self.pauses.values())}", "warning")]
        note = Note("the run goes on")
        if self.phase in _OPEN:
            return [note, *self._ask_delayed(), *self._start_deadline(), *self._close_if_complete()]
        if self.phase is not Phase.GATHERING:
            return [note]
        # Before the first round the run waits for clients without end.
        return [note, *(self._gather() if self._has_begun else self._begin_if_enough())]

    # --- rounds

    def _begin_if_enough(self) -> list[Command]:
        if self.pauses:
            return []
        missing = self._missing()
        if missing is not None:
            return [Note(f"waiting for clients: {missing}")]
        commands: list[Command] = [CancelTimer(GATHER)]
        if self._is_last:
            return commands + self._begin_final_evaluation()
        round_id = self.version + 1
        commands += self._dismiss_the_too_late(round_id)
        for client_id in self._delayed & self._connected.keys():
            self._busy.pop(client_id, None)
        self._delayed = set()
        self._has_begun = True
        free = frozenset(self._eligible - self._busy.keys())
        cohort = self._sample(self._able(free), round_id)
        present = self._tasks
        trainers = {c: present[c] for c in sorted(cohort.clients | (self._kept.keys() & free))}
        trainers |= {c: kept.tasks for c, kept in self._kept.items() if c not in trainers}
        evaluators = self._evaluators(free, cohort.clients)
        self.round = Round(
            round_id,
            trainers,
            evaluators,
            answered={c: kept.examples for c, kept in sorted(self._kept.items())},
            quorum=self.rules.quorum,
            wanted=cohort.wanted,
            stragglers={c: tasks for c, (_, tasks) in sorted(self._busy.items())},
            staleness={c: kept.staleness for c, kept in sorted(self._kept.items()) if kept.staleness},
        )
        self._kept = {}
        self.phase = Phase.TRAINING
        commands.append(BeginRound(round_id, self._attempt, frozenset(trainers), evaluators, present))
        asked = (self.round.training | evaluators) & self._connected.keys()
        commands += [self._dispatch(self.round, client_id) for client_id in sorted(asked)]
        commands += self._start_deadline()
        # Nobody has a seat when every client that is asked has answered in an earlier attempt.
        return commands + self._close_if_complete()

    def _dismiss_the_too_late(self, round_id: int) -> list[Command]:
        """Call off old work whose update would be refused now."""
        limit = self.rules.max_staleness
        late = {c: began for c, (began, _) in self._busy.items() if limit is not None and round_id - began > limit}
        for client_id in late:
            del self._busy[client_id]
        return [
            Dismiss(frozenset({client_id}), began, f"its update would be more than {limit} versions late")
            for client_id, began in sorted(late.items())
        ]

    def _evaluators(self, free: frozenset[str], cohort: frozenset[str]) -> frozenset[str]:
        """Who evaluates the current version in the round that is about to begin."""
        due = self.version % self.rules.evaluate_every == 0 and self._attempt == 1
        if not due or self.rules.evaluate == "none":
            return frozenset()
        return free if self.rules.evaluate == "all" or self.version == 0 else cohort & free

    def _start_deadline(self) -> list[Command]:
        if self.rules.deadline_s is None:
            return []
        # A name of its own for each attempt: a deadline that ran out just as its attempt closed means nothing later.
        self._deadline = f"{DEADLINE}:{self.version + 1}.{self._attempt}"
        return [StartTimer(self._deadline, self.rules.deadline_s)]

    def _begin_final_evaluation(self) -> list[Command]:
        evaluators = self._eligible if self.rules.evaluate != "none" else frozenset[str]()
        self.round = Round(self.version + 1, {}, evaluators)
        self._busy = {}
        self.phase = Phase.EVALUATING
        here = evaluators & self._connected.keys()
        commands: list[Command] = [self._dispatch(self.round, client_id) for client_id in sorted(here)]
        return commands + self._start_deadline() + self._close_if_complete()

    def _dispatch(self, current: Round, client_id: str) -> Dispatch:
        train = current.expects_update(client_id)
        if train:
            self._asked[client_id] = current.round_id
        return Dispatch(
            client_id,
            current.round_id,
            current.version,
            train=train,
            evaluate=current.expects_evaluation(client_id),
        )

    def _evaluated(self, client_id: str, version: int) -> list[Command]:
        if self.round is None or version != self.round.version:
            return []
        self.round.accept_evaluation(client_id)
        return self._close_if_complete()

    def _timer(self, name: str) -> list[Command]:
        if name == self._deadline and self.phase in _OPEN and not self.pauses:
            return self._close("the deadline passed")
        if name == GATHER and self.phase is Phase.GATHERING and not self.pauses:
            missing = self._missing()
            return [] if missing is None else self._finish("failed", f"not enough clients came back in time: {missing}")
        if name.startswith(_grace("")):
            client_id = name.removeprefix(_grace(""))
            if client_id not in self._connected:
                return self._lost(client_id)
        return []

    def _close_if_complete(self) -> list[Command]:
        if self.round is None or not self.round.complete or self.phase not in _OPEN or self.pauses:
            return []
        return self._close("enough updates came" if self.round.seated else "nobody is left to wait for")

    def _close(self, why: str) -> list[Command]:
        assert self.round is not None
        current = self.round
        commands: list[Command] = [CancelTimer(self._deadline), *self._leave_behind(current, why)]
        commands.append(EvaluationsComplete(current.version))
        if self.phase is Phase.EVALUATING:
            done = f"all {self.rules.target_rounds} rounds are done"
            early = self.version < self.rules.target_rounds
            return commands + self._finish("finished", self.outlook.end if early else done)
        if not current.has_quorum:
            return commands + self._repeat(current)
        if self.rules.screen:
            self.phase = Phase.SCREENING
            return [*commands, Screen(current.round_id, frozenset(current.answered))]
        return commands + self._aggregate(current)

    def _leave_behind(self, current: Round, why: str) -> list[Command]:
        """What becomes of those who have not answered: late by name, or left at work in asynchronous rounds."""
        late = current.seated
        at_work: frozenset[str] = frozenset()
        if self.rules.max_staleness is not None and self.phase is Phase.TRAINING:
            self._busy |= {c: (current.round_id, current.tasks_of(c)) for c in current.training}
            at_work = late & self._busy.keys()
        for client_id in late:
            current.give_up(client_id)
        if not (dismissed := late - at_work):
            return []
        names = ", ".join(sorted(dismissed))
        return [
            Note(f"round {current.round_id} left {names} behind: {why}", "warning"),
            Dismiss(dismissed, current.round_id, why),
        ]

    def _screened(self, round_id: int, outliers: Mapping[str, str]) -> list[Command]:
        current = self.round
        if self.phase is not Phase.SCREENING or current is None or round_id != current.round_id:
            return []
        commands: list[Command] = []
        for client_id, reason in sorted(outliers.items()):
            current.withdraw(client_id)
            late_round = self._counted[client_id]
            self._counted[client_id] = self._counted_before.get(client_id, 0)
            commands.append(RefuseUpdate(client_id, late_round, "norm_outlier", reason))
            commands += self._strike(client_id, "norm_outlier", reason)
        return commands + (self._aggregate(current) if current.has_quorum else self._repeat(current))

    def _aggregate(self, current: Round) -> list[Command]:
        self.phase = Phase.REDUCING
        self._attempt = 1
        contributions = dict(sorted(current.answered.items()))
        return [Aggregate(current.round_id, contributions, dict(sorted(current.staleness.items())))]

    def _keep(self, current: Round) -> None:
        """Accepted updates outlive their attempt, as they start from the same version."""
        for client_id, examples in current.answered.items():
            staleness = current.staleness.get(client_id, 0)
            self._kept[client_id] = Kept(current.tasks_of(client_id), examples, staleness)
        self.round = None
        self.phase = Phase.GATHERING

    def _repeat(self, current: Round) -> list[Command]:
        """Another attempt at the same round, or a pause when there were enough of them."""
        came = f"{len(current.answered)} of {len(current.trainers)} updates came"
        missed = f"round {current.round_id} missed its quorum"
        if self._attempt >= self.rules.max_attempts:
            reason = f"{missed} {self._attempt} times ({came})"
            if self.rules.lost_quorum == "fail":
                return self._finish("failed", reason)
            self._attempt = 1
            self._keep(current)
            return self._take_deferred() + self._pause("quorum", reason)
        self._attempt += 1
        self._keep(current)
        note = Note(f"{missed} ({came}): attempt {self._attempt}", "warning")
        return [note, *self._take_deferred(), *self._gather()]

    def _unsound(self, round_id: int, reason: str) -> list[Command]:
        current = self.round
        if self.phase is not Phase.REDUCING or current is None or current.round_id != round_id:
            return []
        self._keep(current)
        return self._take_deferred() + self._pause("unsound", f"round {round_id} makes no version: {reason}")

    def _aggregated(self, version: int, outlook: Outlook) -> list[Command]:
        if self.phase is not Phase.REDUCING or version != self.version + 1:
            return []
        self.version = version
        self.outlook = outlook
        self.round = None
        self.phase = Phase.GATHERING
        return self._take_deferred() + self._gather()

    def _gather(self) -> list[Command]:
        if self.pauses:
            return []
        if self._is_last:
            return self._begin_final_evaluation()
        commands = self._begin_if_enough()
        if self.phase is Phase.GATHERING and self.rules.gather_timeout_s is not None:
            commands.append(StartTimer(GATHER, self.rules.gather_timeout_s))
        return commands

    def _finish(self, state: Literal["finished", "failed", "stopped"], reason: str) -> list[Command]:
        self.phase = Phase.DONE
        return [CancelTimer(self._deadline), CancelTimer(GATHER), Finish(state, reason)]


def _grace(client_id: str) -> str:
    return f"grace:{client_id}"
