"""The coordinator against a model of disk and clients, with joins, updates, deadlines, pauses and crashes in any order.

The machine plays driver, clients and disk. What is acknowledged is on the disk; a crash forgets everything else, and
the next coordinator is restored from the disk as `server.federation` does it. Whatever happens:

* an update is part of at most one committed version;
* what was acknowledged is in the version of the round it counts in, unless it was refused as an outlier afterwards;
* a version is made only with a quorum, and versions grow by one;
* what counted is known when it comes again, also by the next process;
* while a round closes, its folder in the spool holds what was acknowledged and nothing else;
* nobody is asked who is away, in quarantine or still at older work, and no round begins or closes during a pause;
* who has nothing to train is not asked to, and no round follows the last version;
* an open round has its deadline, and in synchronous rounds it wants the work of whoever was asked and is there.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.cohort import Cohort
from server.coordination import (
    Acknowledge,
    Aggregate,
    Aggregated,
    AggregationFailed,
    BeginRound,
    CancelTimer,
    Command,
    Dismiss,
    Dispatch,
    EvaluationArrived,
    Event,
    Finish,
    Joined,
    Left,
    Paused,
    PauseKind,
    Quarantine,
    RefuseUpdate,
    Released,
    Resumed,
    Screen,
    Screened,
    StartTimer,
    Strike,
    TimerFired,
    Unpaused,
    UpdateArrived,
    UpdateDeclined,
    UpdateDelayed,
    UpdateRefused,
)
from server.coordinator import DEADLINE, Coordinator, Phase
from server.outlook import Outlook
from server.round import Quorum
from server.rules import Kept, Rules

TASK_OF = {"p": frozenset("ab"), "q": frozenset("b"), "r": frozenset("c"), "s": frozenset("a"), "t": frozenset("c")}
clients = st.sampled_from(sorted(TASK_OF))
Update = tuple[str, int]


class Federation(RuleBasedStateMachine):
    """One run, with everything around the coordinator made up."""

    @initialize(
        rules=st.builds(
            Rules,
            target_rounds=st.integers(3, 9),
            tasks=st.just(frozenset("abc")),
            min_clients=st.integers(1, 3),
            min_clients_per_task=st.integers(0, 1),
            quorum=st.builds(Quorum, st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 1)),
            deadline_s=st.sampled_from([None, 9.0]),
            grace_s=st.sampled_from([0.0, 5.0]),
            gather_timeout_s=st.just(None),
            max_attempts=st.integers(1, 3),
            evaluate=st.sampled_from(["all", "cohort", "none"]),
            screen=st.booleans(),
            max_staleness=st.sampled_from([None, None, 1, 3]),
            quarantine_after=st.integers(0, 2),
            quarantine_rounds=st.integers(1, 2),
        ),
        asked=st.integers(1, 5),
        spare=st.integers(0, 2),
        trained=st.just([frozenset("abc")]) | st.lists(st.frozensets(st.sampled_from("abc"), min_size=1), min_size=1),
        last=st.sampled_from([99, 99, 99, 1, 2]),
    )
    def begin(self, rules: Rules, asked: int, spare: int, trained: list[frozenset[str]], last: int) -> None:
        self.given, self.asked, self.spare = rules, asked, spare
        #: The tasks that have something to train, by version over and over, and the version that is the last early.
        self.trained, self.last = trained, last
        self.connected: set[str] = set()
        #: The disk: the round in which a file counts and its client, to the round it was trained for.
        self.files: dict[tuple[int, str], int] = {}
        #: The updates in each version, and the newest version on the disk.
        self.in_versions: dict[int, list[Update]] = {}
        self.durable = self.version = 0
        #: What clients were told is safe: (round in which it counts, client).
        self.told: set[tuple[int, str]] = set()
        self.strikes: set[tuple[str, int]] = set()
        self.present: dict[str, frozenset[str]] = {}
        self.begun = 0
        self.quarantined: dict[str, tuple[int, int]] = {}
        #: The round that each client was asked to train for and has not answered; it outlives the server.
        self.work: dict[str, int] = {}
        #: Clients of which an update was withdrawn.
        self.outliers: set[str] = set()
        self.start()

    def sample(self, eligible: frozenset[str], round_id: int) -> Cohort:
        drawn = sorted(eligible)[round_id % 2 :][: self.asked + self.spare] or sorted(eligible)
        return Cohort(frozenset(drawn), self.asked if self.spare or self.given.max_staleness else None)

    def outlook(self) -> Outlook:
        """What can be done from the version in hand: as its file says, so the same for every process."""
        end = "no better" if self.version == self.last else ""
        return Outlook(self.trained[self.version % len(self.trained)], end)

    def start(self) -> None:
        """A process begins, from the disk."""
        self.version = self.durable
        self.decisions = Coordinator(self.given, self.sample, self.version, self.outlook())
        self.decisions.quarantine.restore(
            [(c, number) for c, number in self.strikes if number > self.quarantined.get(c, (0, 0))[0]],
            [(c, until) for c, (_, until) in self.quarantined.items()],
        )
        counted: dict[str, int] = {}
        for client_id, trained in self.committed():
            counted[client_id] = max(trained, counted.get(client_id, 0))
        self.files = {key: trained for key, trained in self.files.items() if key[0] <= self.version + 1}
        kept = {}
        for (counts_in, client_id), trained in self.files.items():
            if counts_in == self.version + 1 and trained > counted.get(client_id, 0):
                kept[client_id] = Kept(TASK_OF[client_id], {"a": trained}, counts_in - trained)
                counted[client_id] = trained
        assert {c for number, c in self.told if number == self.version + 1} <= kept.keys(), "it was said to be safe"
        assert all(number <= self.version + 1 for number, _ in self.told)
        self.acknowledged = {c: self.files[self.version + 1, c] for c in kept}
        self.decisions.restore(kept, counted, self.present, self.begun)
        self.connected.clear()
        self.timers: set[str] = set()
        self.old_timers: set[str] = set()
        self.folding: Aggregate | None = None
        self.screening: Screen | None = None
        self.cohort: frozenset[str] = frozenset()
        self.undecided: dict[str, int] = {}
        self.held: set[tuple[int, str]] = set()
        #: Clients that have joined since they were asked: they may have lost what they had.
        self.anew: set[str] = set()
        #: Clients that this process has asked to train.
        self.asked_here: set[str] = set()
        #: Seated clients whose update could not be stored.
        self.delayed: set[str] = set()
        self.over = False
        self.tell(Resumed())

    # --- the driver

    def tell(self, event: Event) -> list[Command]:
        phase = self.decisions.phase
        commands = self.decisions.handle(event)
        for command in commands:
            self.carry_out(command, phase)
        return commands

    def carry_out(self, command: Command, phase: Phase) -> None:
        assert not self.over
        match command:
            case BeginRound(round_id, attempt, trainers, _, present):
                self.present, self.begun = dict(present), round_id
                assert not self.decisions.pauses
                assert attempt <= self.given.max_attempts
                assert round_id == self.version + 1
                assert len(self.connected) >= self.given.min_clients
                assert self.folding is None
                assert self.version != self.last
                self.cohort = trainers
            case Dispatch(client_id, round_id, version, train):
                assert client_id in self.connected
                assert not self.decisions.pauses or phase in (Phase.TRAINING, Phase.EVALUATING), "a round begins"
                assert (round_id, version) == (self.version + 1, self.version)
                assert not self.decisions.quarantine.holds(client_id, self.version)
                assert not train or self.acknowledged.get(client_id) != round_id
                self.delayed.discard(client_id)
                if train:
                    assert TASK_OF[client_id] & self.outlook().trained, "it has nothing to train"
                    older = self.work.get(client_id, round_id)
                    assert older == round_id or client_id in self.anew, "it is still at work"
                    self.work[client_id] = round_id
                    self.anew.discard(client_id)
                    self.asked_here.add(client_id)
            case Dismiss(client_ids, round_id):
                for client_id in client_ids:
                    if self.work.get(client_id) == round_id:
                        del self.work[client_id]
            case Acknowledge(client_id, round_id, duplicate, counts_in):
                self.acknowledge(client_id, round_id, counts_in, duplicate=duplicate)
            case RefuseUpdate(client_id, round_id, code):
                if client_id in self.undecided:
                    assert self.undecided.pop(client_id) == round_id
                    # Its file is dropped.
                    self.files = {key: n for key, n in self.files.items() if key[1] != client_id or n != round_id}
                if self.work.get(client_id) == round_id:
                    del self.work[client_id]
                if code == "norm_outlier":
                    del self.files[self.version + 1, client_id]
                    del self.acknowledged[client_id]
                    self.told.discard((self.version + 1, client_id))
                    self.held.discard((self.version + 1, client_id))
                    self.outliers.add(client_id)
            case Strike(client_id, round_id):
                self.strikes.add((client_id, round_id))
            case Quarantine(client_id, until_version):
                self.quarantined[client_id] = (self.version + 1, until_version)
            case Screen(round_id, client_ids):
                assert not self.decisions.pauses
                assert round_id == self.version + 1
                assert client_ids == self.acknowledged.keys()
                self.screening = command
            case Aggregate():
                self.aggregate(command, phase)
            case StartTimer(name):
                self.timers.add(name)
            case CancelTimer(name):
                self.old_timers |= self.timers & {name}
                self.timers.discard(name)
            case Finish(state):
                assert state == "finished"
                assert self.version in (self.given.target_rounds, self.last)
                self.over = True
            case _:
                pass

    def acknowledge(self, client_id: str, round_id: int, counts_in: int, *, duplicate: bool) -> None:
        arrived = self.undecided.pop(client_id, None)
        taken = {*self.committed(), *self.acknowledged.items()}
        assert duplicate == ((client_id, round_id) in taken)
        if not duplicate:
            assert arrived == round_id
            assert counts_in == self.version + 1
            assert counts_in == round_id or 0 < counts_in - round_id <= (self.given.max_staleness or 0)
            # The driver moves the file to where it counts before it tells the client.
            self.files = {key: n for key, n in self.files.items() if key[1] != client_id or n != round_id}
            self.files[counts_in, client_id] = round_id
            self.acknowledged[client_id] = round_id
            self.held.add((counts_in, client_id))
            self.work.pop(client_id, None)  # one update at a time: whatever it was asked for, it is free now
            self.delayed.discard(client_id)
            self.tell_clients()

    def tell_clients(self) -> None:
        """An acknowledgement waits until the version that the update counts on is on the disk."""
        safe = {(number, client_id) for number, client_id in self.held if number - 1 <= self.durable}
        self.held -= safe
        self.told |= safe

    def committed(self) -> list[Update]:
        return [update for version in sorted(self.in_versions) for update in self.in_versions[version]]

    def aggregate(self, command: Aggregate, phase: Phase) -> None:
        assert self.folding is None
        assert phase is Phase.SCREENING or not self.decisions.pauses
        assert command.round_id == self.version + 1
        assert command.contributions.keys() == self.acknowledged.keys(), "what was acknowledged, and nothing else"
        for client_id, trained in self.acknowledged.items():
            assert command.contributions[client_id] == {"a": trained}
            assert command.staleness.get(client_id, 0) == command.round_id - trained
        needed = len(self.cohort)
        if self.spare or self.given.max_staleness:
            needed = min(needed, self.asked)
        assert len(command.contributions) >= max(1.0, self.given.quorum.share * needed - 1e-9)
        self.folding = command

    # --- what happens

    @rule(client_ids=st.sets(clients, min_size=3))
    def come(self, client_ids: set[str]) -> None:
        for client_id in sorted(client_ids - self.connected):
            self.join(client_id, again=False)

    @rule(order=st.permutations(sorted(TASK_OF)), number=st.integers(1, 5))
    def answer(self, order: list[str], number: int) -> None:
        """Clients do what they were asked for."""
        for client_id in order[:number]:
            if client_id in self.connected:
                self.tell(EvaluationArrived(client_id, self.version))
                if client_id in self.work:
                    self.arrive(client_id, self.work[client_id])

    @rule(order=st.permutations(sorted(TASK_OF)), number=st.integers(1, 5))
    def go_on_well(self, order: list[str], number: int) -> None:
        """What mostly happens: everybody is there, some answer, the driver does its part."""
        self.come(set(order))
        self.answer(order, number)
        if self.screening is not None:
            self.screened(None)
        if self.durable < self.version:
            self.commit()
        if self.folding is not None:
            self.aggregated(sound=True)

    @rule(order=st.permutations(sorted(TASK_OF)), late=st.integers(0, 2))
    def a_whole_round(self, order: list[str], late: int) -> None:
        """A version is made, by all but a few."""
        if self.decisions.pauses:
            self.unpause()
        self.go_on_well(order, len(order) - late)
        self.answer(order, len(order) - late)
        for name in sorted(self.timers):
            if name.startswith(DEADLINE) and self.decisions.phase is Phase.TRAINING and late:
                self.fire(name)
                break
        self.go_on_well(order, 0)

    @rule(client_id=clients, again=st.booleans())
    def join(self, client_id: str, again: bool) -> None:
        if client_id not in self.connected or again:  # a second time: it has taken the place of the first
            self.connected.add(client_id)
            self.anew.add(client_id)
            self.tell(Joined(client_id, TASK_OF[client_id]))
            if self.decisions.phase is Phase.TRAINING and self.decisions.round is not None:
                assert not self.decisions.round.expects_late_update(client_id), "it may have lost its old work"

    @rule(client_id=clients, for_good=st.booleans())
    def leave(self, client_id: str, for_good: bool) -> None:
        if client_id in self.connected:
            self.connected.discard(client_id)
            if for_good or not self.given.grace_s:
                self.work.pop(client_id, None)
            self.tell(Left(client_id, for_good))

    @rule(client_id=clients, shift=st.sampled_from([0, 0, 0, 1, -1, -1, -2, -4]))
    def update(self, client_id: str, shift: int) -> None:
        """An update comes for some round, wanted or not."""
        trained = self.version + 1 + shift
        if client_id in self.connected and trained >= 1:
            self.arrive(client_id, trained)

    def arrive(self, client_id: str, trained: int) -> None:
        """It is received if the coordinator wants it; the driver has one update of a client on its desk at a time."""
        if client_id in self.outliers and (client_id, trained) in self.committed():
            return
        if client_id not in self.undecided and self.decisions.admission(client_id, trained)[0] == "wanted":
            assert not self.decisions.quarantine.holds(client_id, self.version)
            self.undecided[client_id] = trained
            self.files[self.decisions.spool_round, client_id] = trained
            self.tell(UpdateArrived(client_id, trained, {"a": trained}))

    @rule(client_id=clients)
    def repeat(self, client_id: str) -> None:
        """The acknowledgement of the newest that counts was lost: the client sends the same again."""
        trained = max([n for c, n in [*self.committed(), *self.acknowledged.items()] if c == client_id], default=0)
        if trained and client_id in self.connected and client_id not in {*self.undecided, *self.outliers}:
            answers = self.tell(UpdateArrived(client_id, trained, {"a": 0}))
            assert self.over or answers == [Acknowledge(client_id, trained, True, counts_in=self.version + 1)]

    @rule(client_id=clients, shift=st.sampled_from([0, 0, -1]))
    def decline(self, client_id: str, shift: int) -> None:
        if self.work.get(client_id) == self.version + 1 + shift:
            del self.work[client_id]
        self.tell(UpdateDeclined(client_id, self.version + 1 + shift, "no memory"))

    @rule(client_id=clients, code=st.sampled_from(["non_finite", "internal"]))
    def send_rubbish(self, client_id: str, code: str) -> None:
        if self.decisions.admission(client_id, self.version + 1)[0] == "wanted":
            if self.work.get(client_id) == self.version + 1:
                del self.work[client_id]
            self.tell(UpdateRefused(client_id, self.version + 1, code, "?"))

    @rule(client_id=clients, luck=st.integers(0, 3))
    def not_stored(self, client_id: str, luck: int) -> None:
        current = self.decisions.round
        if luck or current is None or client_id not in current.seated or client_id not in self.connected:
            return
        self.tell(Paused("storage", "full"))
        self.delayed.add(client_id)
        self.tell(UpdateDelayed(client_id, self.work.get(client_id, self.version + 1)))

    @rule(client_id=clients, shift=st.sampled_from([0, 0, -1]))
    def evaluate(self, client_id: str, shift: int) -> None:
        self.tell(EvaluationArrived(client_id, self.version + shift))

    @precondition(lambda self: bool(self.timers))
    @rule(data=st.data())
    def time_passes(self, data: Any) -> None:  # noqa: ANN401  # hypothesis' own
        self.fire(data.draw(st.sampled_from(sorted(self.timers))))

    @precondition(lambda self: bool(self.old_timers - self.timers))
    @rule(data=st.data())
    def time_passed_just_as_it_was_cancelled(self, data: Any) -> None:  # noqa: ANN401  # hypothesis' own
        self.tell(TimerFired(data.draw(st.sampled_from(sorted(self.old_timers - self.timers)))))

    def fire(self, name: str) -> None:
        self.timers.discard(name)
        client_id = name.removeprefix("grace:")
        if client_id != name and client_id not in self.connected:
            self.work.pop(client_id, None)
        self.tell(TimerFired(name))

    @rule(kind=st.sampled_from(["operator", "storage"]), luck=st.integers(0, 4))
    def pause(self, kind: PauseKind, luck: int) -> None:
        if not luck:
            self.tell(Paused(kind, "why"))

    @precondition(lambda self: bool(self.decisions.pauses))
    @rule()
    def unpause(self) -> None:
        full = "storage" in self.decisions.pauses
        self.tell(Unpaused("operator"))
        # A round that could close now may find that it lacks its quorum.
        assert self.over or self.decisions.pauses.keys() - {"quorum"} == ({"storage"} if full else set())
        self.tell(Unpaused("storage"))

    @rule(client_id=clients)
    def release(self, client_id: str) -> None:
        if self.decisions.quarantine.holds(client_id, self.version):
            self.tell(Released(client_id))
            assert self.over or not self.decisions.quarantine.holds(client_id, self.version)

    @precondition(lambda self: self.screening is not None)
    @rule(outlier=st.none() | clients)
    def screened(self, outlier: str | None) -> None:
        assert self.screening is not None
        looked_at, self.screening = self.screening, None
        trained = self.acknowledged.get(outlier or "")
        self.tell(Screened(looked_at.round_id, {outlier: "huge"} if outlier in looked_at.client_ids else {}))
        if outlier is not None and trained is not None:
            assert self.decisions.admission(outlier, trained)[0] != "duplicate", "nothing of it counts"

    @precondition(lambda self: self.folding is not None and self.durable == self.version)
    @rule(sound=st.sampled_from([True, True, True, True, False]))
    def aggregated(self, sound: bool) -> None:
        assert self.folding is not None
        folded, self.folding = self.folding, None
        if not sound:
            self.tell(AggregationFailed(folded.round_id, "not finite"))
            assert self.decisions.pauses
            return
        self.in_versions[folded.round_id] = list(self.acknowledged.items())
        self.acknowledged = {}
        self.version += 1
        self.tell(Aggregated(folded.round_id, self.outlook()))

    @precondition(lambda self: self.durable < self.version)
    @rule()
    def commit(self) -> None:
        """The version that is in memory already is on the disk too."""
        self.durable = self.version
        self.files = {key: trained for key, trained in self.files.items() if key[0] >= self.durable}
        self.tell_clients()

    @rule(back=st.sets(clients), luck=st.integers(0, 4))
    def crash(self, back: set[str], luck: int) -> None:
        """The process dies, now and then; what is in memory alone is gone."""
        if not luck:
            if self.durable < self.version:
                del self.in_versions[self.version]
            self.start()
            self.come(back)

    # --- what holds

    @invariant()
    def each_update_is_counted_once(self) -> None:
        assert len(self.committed()) == len(set(self.committed()))

    @invariant()
    def the_version_is_the_committed_one(self) -> None:
        assert self.decisions.version == self.version

    @invariant()
    def an_open_round_waits_for_somebody(self) -> None:
        if self.decisions.phase in (Phase.TRAINING, Phase.EVALUATING):
            assert self.decisions.round is not None
            assert self.decisions.pauses or not self.decisions.round.complete

    @invariant()
    def an_open_round_has_its_deadline(self) -> None:
        if self.decisions.phase in (Phase.TRAINING, Phase.EVALUATING) and not self.decisions.pauses:
            assert any(name.startswith(DEADLINE) for name in self.timers) == (self.given.deadline_s is not None)

    @invariant()
    def what_is_folded_is_what_lies_in_its_folder(self) -> None:
        if self.screening is not None or self.folding is not None:
            assert {c for number, c in self.files if number == self.version + 1} == self.acknowledged.keys()

    @invariant()
    def what_was_not_stored_is_asked_for_when_there_is_room(self) -> None:
        current = self.decisions.round
        if self.decisions.phase is Phase.TRAINING and current is not None and not self.decisions.pauses:
            assert not self.delayed & current.seated & self.connected

    @invariant()
    def work_of_the_open_round_is_wanted(self) -> None:
        current = self.decisions.round
        if self.decisions.phase is Phase.TRAINING and current is not None and self.given.max_staleness is None:
            for client_id, number in self.work.items():
                if client_id in self.connected & self.asked_here and number == current.round_id:
                    assert self.decisions.admission(client_id, number)[0] in ("wanted", "duplicate")

    @invariant()
    def nobody_is_waited_for_who_is_gone_or_too_late(self) -> None:
        current = self.decisions.round
        if self.decisions.phase is Phase.TRAINING and current is not None:
            for client_id in current.seated:
                assert client_id in self.connected or f"grace:{client_id}" in self.timers
            for client_id, number in self.work.items():
                if current.expects_late_update(client_id):
                    assert current.round_id - number <= (self.given.max_staleness or 0)

    @invariant()
    def nobody_is_waited_for_who_is_in_quarantine(self) -> None:
        current = self.decisions.round
        if self.decisions.phase is Phase.TRAINING and current is not None and self.given.max_staleness is None:
            assert not any(self.decisions.quarantine.holds(c, self.version) for c in current.training)


Federation.TestCase.settings = settings(
    max_examples=600, stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestFederation = Federation.TestCase
