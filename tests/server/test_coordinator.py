"""The coordinator: synchronous rounds in situations by name, and laws that hold in every history.

Pauses, asynchronous rounds, screening and restarts have files of their own: `test_coordinator_*.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.cohort import Cohort
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
    Resumed,
    StartTimer,
    StopRequested,
    TimerFired,
    UpdateArrived,
    UpdateDeclined,
)
from server.coordinator import GATHER, Coordinator, Phase
from server.round import Quorum
from server.rules import Kept, Rules
from tests.server.coordinator_run import TEN, Run, dispatched, finish, first, only, only_x, rules

TASKS = ("a", "b", "c")


# --- situations


def test_a_run_from_the_first_client_to_the_last_version() -> None:
    run = Run(rules(evaluate="all"))
    assert only(run.join("x", "y"), Note)[0].text == "waiting for clients: 2 of 3 clients"
    begun = run.join("z")
    assert only(begun, BeginRound) == [BeginRound(1, 1, frozenset("xyz"), frozenset("xyz"))]
    assert only(begun, Dispatch) == [Dispatch(c, 1, 0, train=True, evaluate=True) for c in "xyz"]
    for number in (1, 2):
        for client_id in "zxy":
            run.tell(EvaluationArrived(client_id, number - 1))
            done = run.update(client_id, number)
            assert only(done, Acknowledge) == [Acknowledge(client_id, number, duplicate=False, counts_in=number)]
        (aggregate,) = only(done, Aggregate)
        assert aggregate == Aggregate(number, {"x": TEN, "y": TEN, "z": TEN})
        assert list(aggregate.contributions) == ["x", "y", "z"], "in client order, whoever came first"
        assert EvaluationsComplete(number - 1) in done
        after = run.tell(Aggregated(number))
    assert only(after, Dispatch) == [Dispatch(c, 3, 2, train=False, evaluate=True) for c in "xyz"]
    last = run.tell(*(EvaluationArrived(c, 2) for c in "xyz"))
    assert only(last, EvaluationsComplete) == [EvaluationsComplete(2)]
    assert finish(last) == "finished"
    assert run.decisions.phase is Phase.DONE
    assert run.join("w") == []


def test_an_update_is_counted_once() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.update("x", 1)
    assert run.update("x", 1) == [Acknowledge("x", 1, duplicate=True, counts_in=1)]
    run.update("y", 1)
    assert len(only(run.update("z", 1), Aggregate)) == 1
    assert run.update("z", 1) == [Acknowledge("z", 1, duplicate=True, counts_in=1)], "also while it is being folded"
    run.tell(Aggregated(1))
    assert run.update("z", 1) == [Acknowledge("z", 1, duplicate=True, counts_in=2)], "and when it is in the model"
    assert only(run.update("z", 0), RefuseUpdate)[0].code == "stale_round"
    assert only(run.update("z", 7), RefuseUpdate)[0].code == "future_round"


def test_what_is_not_asked_is_refused() -> None:
    run = Run(rules(min_clients=2), sample=only_x)
    run.join("x", "y")
    assert run.decisions.admission("x", 1)[0] == "wanted"
    assert run.decisions.admission("y", 1)[:2] == ("refused", "not_asked")
    assert only(run.update("y", 1), RefuseUpdate)[0].code == "not_asked"
    assert run.decisions.admission("x", 0)[:2] == ("refused", "stale_round")
    assert run.decisions.admission("x", 2)[:2] == ("refused", "future_round")


def test_the_deadline_with_quorum_leaves_stragglers_behind() -> None:
    run = Run(rules(deadline_s=9.0, quorum=Quorum(0.6)))
    begun = run.join("x", "y", "z")
    assert [command.seconds for command in only(begun, StartTimer)] == [9.0]
    run.update("x", 1)
    run.update("y", 1)
    closed = run.timer("round-deadline")
    assert only(closed, Dismiss) == [Dismiss(frozenset({"z"}), 1, "the deadline passed")]
    assert only(closed, Aggregate) == [Aggregate(1, {"x": TEN, "y": TEN})]
    assert only(run.update("z", 1), RefuseUpdate)[0].code == "stale_round"
    assert "z" in dispatched(run.tell(Aggregated(1))), "the straggler is asked again in the next round"


def test_the_deadline_without_quorum_repeats_the_round_and_keeps_what_came() -> None:
    run = Run(rules(deadline_s=9.0, quorum=Quorum(0.6), max_attempts=2))
    run.join("x", "y", "z")
    run.update("x", 1)
    again = run.timer("round-deadline")
    assert only(again, Aggregate) == []
    assert only(again, BeginRound) == [BeginRound(1, 2, frozenset("xyz"), frozenset())]
    assert dispatched(again) == ["y", "z"]
    assert run.decisions.admission("x", 1)[0] == "duplicate"
    done = run.update("y", 1) + run.timer("round-deadline")
    assert only(done, Aggregate) == [Aggregate(1, {"x": TEN, "y": TEN})]


def test_a_round_that_never_gets_its_quorum_fails_the_run() -> None:
    run = Run(rules(deadline_s=9.0, quorum=Quorum(1.0), max_attempts=3))
    run.join("x", "y", "z")
    for _ in range(2):
        assert only(run.timer("round-deadline"), Finish) == []
    (end,) = only(run.timer("round-deadline"), Finish)
    assert end.state == "failed"
    assert "missed its quorum 3 times (0 of 3 updates came)" in end.reason


def test_a_deadline_that_ran_out_as_its_attempt_closed_means_nothing_to_the_next() -> None:
    run = Run(rules(deadline_s=9.0, quorum=Quorum(1.0)))
    run.join("x", "y", "z")
    (name,) = run.timers
    run.tell(*(UpdateDeclined(c, 1, "no memory") for c in "xyz"))
    assert run.decisions.phase is Phase.TRAINING, "the second attempt"
    assert run.tell(TimerFired(name)) == []


def test_kept_updates_wait_for_clients_and_are_duplicates_meanwhile() -> None:
    run = Run(rules(min_clients=2, quorum=Quorum(1.0)))
    run.join("x", "y")
    run.update("x", 1)
    again = run.tell(Left("y", for_good=True))
    assert only(again, BeginRound) == [], "fewer than two clients"
    assert only(again, StartTimer)[0].name == GATHER
    assert run.decisions.admission("x", 1)[0] == "duplicate"
    assert run.decisions.admission("y", 1)[1] == "future_round"
    assert dispatched(run.join("z")) == ["z"]


def test_a_member_that_is_lost_when_all_others_have_answered_ends_the_round() -> None:
    run = Run(rules(min_clients=2, quorum=Quorum(1.0), grace_s=0))
    run.join("w", "x")
    run.update("w", 1)
    run.update("x", 1)
    run.join("y")  # takes part from round two on
    run.tell(Aggregated(1))
    run.update("w", 2)
    run.update("x", 2)
    # Quorum is missed with two of three, and the two who are left have answered already.
    done = run.tell(Left("y"))
    assert [command.attempt for command in only(done, BeginRound)] == [2]
    assert only(done, Aggregate) == [Aggregate(2, {"w": TEN, "x": TEN})]


def test_a_client_that_comes_back_within_the_grace_gets_its_work_again() -> None:
    run = Run(rules(evaluate="all", grace_s=5.0))
    run.join("x", "y", "z")
    run.tell(EvaluationArrived("x", 0))
    assert run.tell(Left("x")) == [StartTimer("grace:x", 5.0)]
    back = run.join("x")
    assert back == [CancelTimer("grace:x"), Dispatch("x", 1, 0, train=True, evaluate=False)]
    run.update("x", 1)
    # Nothing is expected of it in this round any more, but the next one would count on it.
    assert run.tell(Left("x")) == [StartTimer("grace:x", 5.0)]
    assert dispatched(run.join("x")) == []


def test_a_round_counts_on_a_client_that_is_away_for_a_moment() -> None:
    """Its connection broke between two rounds: who is in the cohort does not depend on how fast it is back."""
    run = Run(rules(min_clients=2, grace_s=5.0))
    run.join("x", "y", "z")
    run.update("x", 1)
    run.update("y", 1)
    run.update("z", 1)
    run.tell(Left("z"))
    begun = run.tell(Aggregated(1))
    assert only(begun, BeginRound)[0].trainers == {"x", "y", "z"}
    assert dispatched(begun) == ["x", "y"]
    assert only(run.update("x", 2) + run.update("y", 2), Aggregate) == []
    assert dispatched(run.join("z")) == ["z"]
    assert only(run.update("z", 2), Aggregate)


def test_a_client_that_stays_away_is_not_waited_for_again() -> None:
    run = Run(rules(min_clients=2, grace_s=5.0, target_rounds=3))
    run.join("x", "y", "z")
    run.update("x", 1)
    run.update("y", 1)
    run.update("z", 1)
    run.tell(Left("z"), Aggregated(1))
    run.update("x", 2)
    run.update("y", 2)
    assert only(run.timer("grace:z"), Aggregate) == [Aggregate(2, {"x": TEN, "y": TEN})]
    assert only(run.tell(Aggregated(2)), BeginRound)[0].trainers == {"x", "y"}


def test_a_restarted_server_counts_on_the_clients_of_before_and_on_nobody_who_came_since() -> None:
    run = Run(rules(min_clients=1, grace_s=5.0), version=1)
    run.decisions.restore({}, {}, {"x": frozenset("a"), "y": frozenset("a")}, begun=2)
    assert run.decisions.away == {"x", "y"}
    assert run.tell(Resumed()) == [StartTimer("grace:x", 5.0), StartTimer("grace:y", 5.0)]
    assert only(run.join("new"), BeginRound)[0].trainers == {"x", "y"}
    assert dispatched(run.join("y")) == ["y"]
    assert dispatched(run.join("x")) == ["x"]
    run.update("x", 2)
    assert only(run.update("y", 2), Aggregate) == [Aggregate(2, {"x": TEN, "y": TEN})]


def test_a_restarted_server_goes_on_with_others_when_nobody_of_before_comes_back() -> None:
    run = Run(rules(min_clients=1, grace_s=5.0), version=1)
    run.decisions.restore({}, {}, {"x": frozenset("a")}, begun=2)
    run.tell(Resumed())
    run.timer("grace:x")
    assert only(run.join("new"), BeginRound)[0].trainers == {"new"}


def test_a_client_whose_grace_runs_out_loses_its_seat() -> None:
    run = Run(rules(quorum=Quorum(0.5)))
    run.join("x", "y", "z")
    run.update("x", 1)
    run.update("y", 1)
    run.tell(Left("z"))
    done = run.timer("grace")
    assert "goes on without z" in only(done, Note)[0].text
    assert only(done, Aggregate) == [Aggregate(1, {"x": TEN, "y": TEN})]


def test_a_grace_that_ran_out_as_the_client_came_back_takes_nothing() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.tell(Left("x"))
    run.join("x")
    assert run.tell(TimerFired("grace:x")) == []
    assert run.decisions.admission("x", 1)[0] == "wanted"


def test_a_goodbye_does_not_wait_for_the_grace() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.update("x", 1)
    run.tell(Left("y", for_good=True))
    assert run.decisions.admission("y", 1)[1] == "not_asked"
    assert only(run.update("z", 1), Aggregate) == [Aggregate(1, {"x": TEN, "z": TEN})]


def test_when_everybody_declines_the_round_is_repeated_and_then_fails() -> None:
    run = Run(rules(max_attempts=2))
    run.join("x", "y", "z")
    first = run.tell(*(UpdateDeclined(c, 1, "loss is nan") for c in "xyz"))
    assert dispatched(first) == ["x", "y", "z"]
    assert finish(run.tell(*(UpdateDeclined(c, 1, "loss is nan") for c in "xyz"))) == "failed"


def test_a_decline_of_another_round_changes_nothing() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    assert run.tell(UpdateDeclined("x", 2, "?")) == []
    assert run.tell(UpdateDeclined("nobody", 1, "?")) == []
    assert run.decisions.admission("x", 1)[0] == "wanted"


def test_each_task_has_to_be_there() -> None:
    run = Run(rules(tasks=frozenset("ab"), min_clients=1, min_clients_per_task=1))
    assert only(run.join("x"), Note)[0].text == "waiting for clients: 0 of 1 clients for task b"
    assert dispatched(run.join("y", tasks={"y": "b"})) == ["x", "y"]


def test_each_task_asked_needs_its_updates() -> None:
    run = Run(rules(tasks=frozenset("ab"), min_clients=2, quorum=Quorum(0.1, per_task=1), max_attempts=1))
    run.join("x", "y", tasks={"y": "b"})
    run.update("x", 1)
    assert finish(run.tell(UpdateDeclined("y", 1, "no"))) == "failed"


def test_when_clients_do_not_come_back_in_time_the_run_fails() -> None:
    run = Run(rules(gather_timeout_s=60.0))
    assert run.timers == set()
    run.join("x", "y")
    assert run.timers == set(), "before the run has begun it waits for ever"
    run.join("z")
    run.tell(Left("z", for_good=True))
    run.update("x", 1)
    run.update("y", 1)
    waiting = run.tell(Aggregated(1))
    assert only(waiting, StartTimer) == [StartTimer(GATHER, 60.0)]
    assert finish(run.timer(GATHER)) == "failed"


def test_when_clients_come_back_in_time_the_run_goes_on() -> None:
    run = Run(rules(gather_timeout_s=60.0))
    run.join("x", "y", "z")
    run.tell(Left("z", for_good=True))
    run.update("x", 1)
    run.update("y", 1)
    run.tell(Aggregated(1))
    assert dispatched(run.join("z")) == ["x", "y", "z"]
    assert run.timers == set()
    assert run.tell(TimerFired(GATHER)) == [], "ran out as the client came"


@pytest.mark.parametrize(
    ("mode", "first", "second", "last"),
    [("all", "xyz", "xyz", "xyz"), ("cohort", "xyz", "x", "xyz"), ("none", "", "", "")],
)
def test_who_evaluates(mode: str, first: str, second: str, last: str) -> None:
    run = Run(rules(evaluate=mode), sample=only_x)
    begun = run.join("x", "y", "z")

    def evaluators(commands: list[Command]) -> str:
        return "".join(command.client_id for command in only(commands, Dispatch) if command.evaluate)

    assert evaluators(begun) == first
    run.tell(*(EvaluationArrived(c, 0) for c in first))
    run.update("x", 1)
    begun = run.tell(Aggregated(1))
    assert evaluators(begun) == second
    run.tell(*(EvaluationArrived(c, 1) for c in second))
    run.update("x", 2)
    begun = run.tell(Aggregated(2))
    assert evaluators(begun) == last
    assert finish(run.tell(*(EvaluationArrived(c, 2) for c in last)) if last else begun) == "finished"


def test_the_final_evaluation_does_not_wait_for_ever() -> None:
    run = Run(rules(target_rounds=1, min_clients=1, evaluate="all", deadline_s=9.0))
    run.join("x")
    run.tell(EvaluationArrived("x", 0))
    run.update("x", 1)
    run.tell(Aggregated(1))
    done = run.timer("round-deadline")
    assert only(done, Dismiss)[0].client_ids == {"x"}
    assert finish(done) == "finished"


def test_an_evaluation_of_another_version_is_not_the_one_awaited() -> None:
    run = Run(rules(min_clients=1, evaluate="all"))
    run.join("x")
    run.update("x", 1)
    assert run.tell(EvaluationArrived("x", 5)) == []
    assert only(run.tell(EvaluationArrived("x", 0)), Aggregate)


def test_updates_from_before_a_restart_count() -> None:
    run = Run(rules(), version=1)
    run.decisions.restore({"z": Kept(frozenset("a"), TEN), "away": Kept(frozenset("a"), TEN)}, {"z": 2, "away": 2})
    assert run.decisions.admission("z", 2)[0] == "duplicate"
    begun = run.join("x", "y", "z")
    assert only(begun, BeginRound)[0].trainers == {"x", "y", "z", "away"}
    assert dispatched(begun) == ["x", "y"]
    run.update("x", 2)
    assert only(run.update("y", 2), Aggregate)[0].contributions.keys() == {"away", "x", "y", "z"}


def test_when_all_updates_are_from_before_a_restart_nobody_is_asked() -> None:
    run = Run(rules(min_clients=2), version=1)
    run.decisions.restore({"x": Kept(frozenset("a"), TEN), "y": Kept(frozenset("a"), TEN)}, {"x": 2, "y": 2})
    assert only(run.join("x", "y"), Aggregate) == [Aggregate(2, {"x": TEN, "y": TEN})]


def test_a_finished_run_that_is_resumed_is_evaluated_once_more() -> None:
    run = Run(rules(evaluate="all", min_clients=1), version=2)
    assert only(run.join("x"), Dispatch) == [Dispatch("x", 3, 2, train=False, evaluate=True)]
    assert finish(run.tell(EvaluationArrived("x", 2))) == "finished"


@pytest.mark.parametrize(("event", "state"), [(StopRequested("ctrl-c"), "stopped"), (Crashed("disk"), "failed")])
def test_stop_and_crash_end_everything(event: Event, state: str) -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    assert finish(run.tell(event)) == state
    assert run.tell(event) == []
    assert run.update("x", 1) == []


def test_the_first_updates_close_the_round_and_the_slowest_are_left_behind() -> None:
    run = Run(rules(quorum=Quorum(1.0)), sample=first(2))
    run.join("x", "y", "z")
    run.update("z", 1)
    closed = run.update("x", 1)
    assert only(closed, Dismiss) == [Dismiss(frozenset("y"), 1, "enough updates came")]
    assert only(closed, Aggregate) == [Aggregate(1, {"x": TEN, "z": TEN})]
    assert run.admits("y", 1) == ("refused", "stale_round")
    assert dispatched(run.tell(Aggregated(1))) == ["x", "y", "z"]


def test_over_selection_still_needs_the_quorum_of_each_task() -> None:
    run = Run(rules(tasks=frozenset("ab"), quorum=Quorum(0.5, per_task=1)), sample=first(2))
    run.join("x", "y", "z", tasks={"z": "b"})
    run.update("x", 1)
    assert only(run.update("y", 1), Aggregate) == []
    assert len(only(run.update("z", 1), Aggregate)) == 1


# --- laws

CLIENTS = ("p", "q", "r", "s")
moves = st.one_of(
    st.tuples(st.just("join"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("leave"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("goodbye"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("update"), st.sampled_from(CLIENTS), st.integers(-1, 1)),
    st.tuples(st.just("answer"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("decline"), st.sampled_from(CLIENTS), st.integers(-1, 1)),
    st.tuples(st.just("evaluate"), st.sampled_from(CLIENTS), st.integers(-1, 1)),
    st.tuples(st.just("timer"), st.integers(0, 9)),
    st.tuples(st.just("old timer"), st.integers(0, 9)),
    st.tuples(st.just("aggregated"), st.just(0)),
)
some_rules = st.builds(
    Rules,
    target_rounds=st.integers(1, 3),
    tasks=st.just(frozenset(TASKS)),
    min_clients=st.integers(1, 3),
    min_clients_per_task=st.integers(0, 1),
    quorum=st.builds(Quorum, st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 1)),
    deadline_s=st.sampled_from([None, 9.0]),
    grace_s=st.sampled_from([0.0, 5.0]),
    gather_timeout_s=st.sampled_from([None, 60.0]),
    max_attempts=st.integers(1, 3),
    evaluate=st.sampled_from(["all", "cohort", "none"]),
    lost_quorum=st.just("fail"),
)
TASK_OF = {"p": frozenset("ab"), "q": frozenset("b"), "r": frozenset("c"), "s": frozenset("a")}


class Witness:
    """Plays the driver, and checks each command against what was promised."""

    def __init__(self, given_rules: Rules, cohort_size: int) -> None:
        self.run = Run(
            given_rules, lambda connected, number: Cohort(frozenset(sorted(connected)[: cohort_size + number % 2]))
        )
        self.here: set[str] = set()
        self.accepted: dict[int, dict[str, Mapping[str, int]]] = {}
        self.cohort: dict[int, frozenset[str]] = {}
        self.folding: int | None = None
        self.version = 0
        self.over = False
        self.old_timers: set[str] = set()
        self.serial = 0

    @property
    def decisions(self) -> Coordinator:
        return self.run.decisions

    def tell(self, event: Event) -> None:
        was_over, before = self.over, self.decisions.phase
        self.old_timers |= self.run.timers
        for command in self.run.tell(event):
            assert not was_over, "after the end nothing more"
            self.check(command)
        assert self.decisions.version == self.version
        if before is Phase.DONE:
            assert self.decisions.phase is Phase.DONE
        if self.decisions.phase in (Phase.TRAINING, Phase.EVALUATING):
            assert self.decisions.round is not None
            assert self.decisions.round.seated, "nobody is awaited, and yet the round is open"

    def check(self, command: Command) -> None:
        assert not self.over
        match command:
            case Dispatch(client_id, round_id, version, train, evaluate):
                assert client_id in self.here
                assert (round_id, version) == (self.version + 1, self.version)
                assert train or evaluate
                assert not train or client_id not in self.accepted.get(round_id, {})
                assert self.folding is None
            case BeginRound(round_id, _, trainers, _):
                assert round_id == self.version + 1
                assert len(self.here) >= self.run.rules.min_clients
                self.cohort[round_id] = trainers
            case Acknowledge(client_id, round_id, duplicate):
                assert duplicate == (client_id in self.accepted.get(round_id, {}))
                if not duplicate:
                    assert round_id == self.version + 1
                    assert client_id in self.cohort[round_id]
                    self.accepted.setdefault(round_id, {})[client_id] = self.sent
            case RefuseUpdate(client_id, round_id):
                assert round_id != self.version + 1 or client_id not in self.accepted.get(round_id, {})
            case Aggregate(round_id, contributions):
                assert self.folding is None
                assert round_id == self.version + 1
                assert dict(contributions) == self.accepted[round_id], "all that was acknowledged, and nothing else"
                quorum, cohort = self.run.rules.quorum, self.cohort[round_id]
                assert len(contributions) >= max(1, quorum.share * len(cohort) - 1e-9)
                self.folding = round_id
            case Finish(state):
                self.over = True
                assert state != "finished" or self.version == self.run.rules.target_rounds
            case _:
                pass

    def aggregate(self) -> None:
        """The fold in progress is done."""
        assert self.folding is not None
        self.version, self.folding = self.folding, None
        self.tell(Aggregated(self.version))

    def move(self, kind: str, *details: Any) -> None:  # noqa: ANN401  # of the strategy above
        current = self.decisions.version + 1
        match kind, details:
            case "join", (client_id,) if client_id not in self.here:
                self.here.add(client_id)
                self.tell(Joined(client_id, TASK_OF[client_id]))
            case "leave" | "goodbye", (client_id,) if client_id in self.here:
                self.here.discard(client_id)
                self.tell(Left(client_id, kind == "goodbye"))
            case "update", (client_id, shift):
                self.arrive(client_id, current + shift)
            case "answer", (client_id,) if client_id in self.here:
                self.answer(client_id)
            case "decline", (client_id, shift):
                self.tell(UpdateDeclined(client_id, current + shift, "no"))
            case "evaluate", (client_id, shift):
                self.tell(EvaluationArrived(client_id, current - 1 + shift))
            case "timer", (which,) if self.run.timers:
                name = sorted(self.run.timers)[which % len(self.run.timers)]
                self.run.timers.discard(name)
                self.tell(TimerFired(name))
            case "old timer", (which,) if self.old_timers - self.run.timers:
                stale = sorted(self.old_timers - self.run.timers)
                self.tell(TimerFired(stale[which % len(stale)]))
            case "aggregated", _ if self.folding is not None and not self.over:
                self.aggregate()
            case "stop", _:
                self.tell(StopRequested("told to"))
            case "crash", _:
                self.tell(Crashed("disk full"))
            case _:
                pass  # not possible now

    def arrive(self, client_id: str, round_id: int) -> None:
        self.serial += 1
        self.sent: Mapping[str, int] = {"a": self.serial}
        self.tell(UpdateArrived(client_id, round_id, self.sent))

    def answer(self, client_id: str) -> None:
        """The client does what it was asked for, if anything."""
        current = self.decisions.round
        if current is None:
            return
        if current.expects_evaluation(client_id):
            self.tell(EvaluationArrived(client_id, current.version))
        if current.expects_update(client_id) and self.decisions.round is current:
            self.arrive(client_id, current.round_id)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    some_rules,
    st.integers(1, 4),
    st.permutations(CLIENTS),
    st.lists(moves, min_size=10, max_size=60),
    st.sampled_from(["stop", "crash"]),
)
def test_laws_in_any_history(
    given_rules: Rules, cohort_size: int, order: list[str], history: list[tuple[Any, ...]], end: str
) -> None:
    witness = Witness(given_rules, cohort_size)
    for client_id in order[: given_rules.min_clients]:
        witness.move("join", client_id)
    for kind, *details in history:
        witness.move(kind, *details)
    witness.move(end, 0)
    assert witness.over


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    some_rules,
    st.integers(1, 4),
    st.lists(moves.filter(lambda move: move[0] not in ("decline", "timer")), max_size=30),
    st.permutations(CLIENTS),
)
def test_clients_that_answer_finish_the_run(
    given_rules: Rules, cohort_size: int, disturbance: list[tuple[Any, ...]], order: list[str]
) -> None:
    """However the run began: once everybody is there and answers, it reaches its target, a version at a time."""
    witness = Witness(given_rules, cohort_size)
    for kind, *details in disturbance:
        witness.move(kind, *details)
    for client_id in order:
        witness.move("join", client_id)
    for _ in range(20 * given_rules.target_rounds):
        if witness.over:
            break
        for client_id in order:
            witness.move("answer", client_id)
        witness.move("aggregated", 0)
    if witness.run.commands and isinstance(witness.run.commands[-1], Finish):
        assert witness.run.commands[-1].state == "finished" or "missed its quorum" in witness.run.commands[-1].reason
    assert witness.over, f"stuck in {witness.decisions.phase}"
    if witness.version == given_rules.target_rounds:
        assert [command.round_id for command in only(witness.run.commands, Aggregate)] == list(
            range(1, given_rules.target_rounds + 1)
        )
