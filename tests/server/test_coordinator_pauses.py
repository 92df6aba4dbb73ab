"""The coordinator's pauses: an operator's, a full disk, a quorum missed too often, a model that is not finite."""

from __future__ import annotations

import pytest

from server.coordination import (
    Acknowledge,
    Aggregate,
    Aggregated,
    AggregationFailed,
    BeginRound,
    CancelTimer,
    Dismiss,
    EvaluationArrived,
    Finish,
    Joined,
    Note,
    Paused,
    PauseKind,
    StartTimer,
    StopRequested,
    TimerFired,
    Unpaused,
    UpdateDeclined,
    UpdateDelayed,
)
from server.coordinator import GATHER, Phase
from server.round import Quorum
from server.rules import Kept
from tests.server.coordinator_run import TEN, Run, dispatched, finish, first, only, rules

OPERATOR = Paused("operator", "paused by a test")
FULL = Paused("storage", "the disk is full")
#: A kind and what lifts it.
KINDS: list[tuple[PauseKind, PauseKind]] = [
    ("operator", "operator"), ("storage", "storage"), ("quorum", "operator"), ("unsound", "operator"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "lifted_by"), KINDS)
def test_no_round_begins_during_a_pause(kind: PauseKind, lifted_by: PauseKind) -> None:
    run = Run(rules())
    paused = run.tell(Paused(kind, "why"))
    assert only(paused, Note) == [Note("the run is paused: why", "warning")]
    assert run.join("x", "y", "z") == []
    assert run.decisions.pauses == {kind: "why"}
    goes_on = run.tell(Unpaused(lifted_by))
    assert goes_on[0] == Note("the run goes on")
    assert dispatched(goes_on) == ["x", "y", "z"]
    assert run.decisions.pauses == {}


@pytest.mark.parametrize(("kind", "lifted_by"), KINDS)
def test_no_round_closes_during_a_pause_and_updates_are_still_taken(kind: PauseKind, lifted_by: PauseKind) -> None:
    run = Run(rules(deadline_s=9.0))
    run.join("x", "y", "z")
    deadline = next(iter(run.timers))
    assert CancelTimer(deadline) in run.tell(Paused(kind, "why"))
    for client_id in "xyz":
        assert run.update(client_id, 1) == [Acknowledge(client_id, 1, duplicate=False, counts_in=1)]
    assert run.tell(TimerFired(deadline)) == [], "it ran out as the pause came"
    assert run.decisions.phase is Phase.TRAINING
    assert only(run.tell(Unpaused(lifted_by)), Aggregate) == [Aggregate(1, dict.fromkeys("xyz", TEN))]


def test_the_deadline_starts_afresh_after_a_pause() -> None:
    run = Run(rules(deadline_s=9.0, quorum=Quorum(0.3)))
    run.join("x", "y", "z")
    run.update("x", 1)
    run.tell(OPERATOR)
    assert run.timers == set()
    assert only(run.tell(Unpaused("operator")), StartTimer) == [StartTimer("round-deadline:1.1", 9.0)]
    assert only(run.timer("round-deadline"), Aggregate) == [Aggregate(1, {"x": TEN})]


def test_clients_that_are_lost_or_decline_during_a_pause_end_the_round_only_after_it() -> None:
    run = Run(rules(quorum=Quorum(0.3)))
    run.join("x", "y", "z")
    run.update("x", 1)
    run.tell(OPERATOR)
    assert only(run.leave("y"), Aggregate) == []
    assert only(run.tell(UpdateDeclined("z", 1, "no memory")), Aggregate) == []
    assert only(run.tell(Unpaused("operator")), Aggregate) == [Aggregate(1, {"x": TEN})]


def test_a_client_that_comes_back_during_a_pause_gets_its_work_again() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.tell(OPERATOR)
    assert dispatched(run.join("x")) == ["x"], "its round is open"
    assert dispatched(run.join("w")) == []


def test_a_fold_that_ends_during_a_pause_makes_its_version_and_no_further_round() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.updates("xyz", 1)
    run.tell(OPERATOR)
    assert run.tell(Aggregated(1)) == []
    assert (run.decisions.version, run.decisions.phase) == (1, Phase.GATHERING)
    assert only(run.tell(Unpaused("operator")), BeginRound)[0].round_id == 2


def test_a_pause_lifted_while_a_round_is_folded_needs_nothing_more() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.updates("xyz", 1)
    run.tell(OPERATOR)
    assert run.tell(Unpaused("operator")) == [Note("the run goes on")]
    assert dispatched(run.tell(Aggregated(1))) == ["x", "y", "z"]


def test_the_last_evaluation_waits_for_the_end_of_a_pause() -> None:
    run = Run(rules(target_rounds=1, min_clients=1, evaluate="all", deadline_s=9.0))
    run.join("x")
    run.tell(EvaluationArrived("x", 0))
    run.update("x", 1)
    run.tell(Aggregated(1), OPERATOR)
    assert run.timers == set()
    assert only(run.tell(EvaluationArrived("x", 1)), Finish) == []
    assert finish(run.tell(Unpaused("operator"))) == "finished"


@pytest.mark.parametrize("kind", ["operator", "quorum", "unsound"])
def test_an_operator_does_not_make_room_on_a_disk(kind: PauseKind) -> None:
    run = Run(rules())
    run.tell(FULL, Paused(kind, "why"))
    run.join("x", "y", "z")
    still = run.tell(Unpaused("operator"))
    assert still == [Note("the run stays paused: the disk is full", "warning")]
    assert run.decisions.pauses == {"storage": "the disk is full"}
    assert dispatched(run.tell(Unpaused("storage"))) == ["x", "y", "z"]


@pytest.mark.parametrize("kind", ["operator", "quorum", "unsound"])
def test_room_on_the_disk_does_not_lift_the_other_pauses(kind: PauseKind) -> None:
    run = Run(rules())
    run.tell(FULL, Paused(kind, "why"))
    assert run.join("x", "y", "z") == []
    assert run.tell(Unpaused("storage")) == [Note("the run stays paused: why", "warning")]
    assert dispatched(run.tell(Unpaused("operator"))) == ["x", "y", "z"]


def test_the_same_pause_twice_is_said_once_with_its_newest_reason() -> None:
    run = Run(rules())
    run.tell(FULL)
    assert run.tell(Paused("storage", "still full")) == []
    assert run.decisions.pauses == {"storage": "still full"}


def test_lifting_what_is_not_paused_does_nothing() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    assert run.tell(Unpaused("operator"), Unpaused("storage")) == []


def test_an_update_that_could_not_be_stored_is_asked_for_again_when_there_is_room() -> None:
    run = Run(rules(deadline_s=9.0))
    run.join("x", "y", "z")
    run.update("z", 1)
    run.tell(FULL)
    assert run.tell(UpdateDelayed("y", 1), UpdateDelayed("x", 1)) == []
    assert only(run.commands, Dismiss) == [], "the clients keep their seats"
    assert dispatched(run.tell(Unpaused("storage"))) == ["x", "y"]
    run.tell(OPERATOR)
    assert dispatched(run.tell(Unpaused("operator"))) == [], "once"
    run.update("x", 1)
    assert len(only(run.update("y", 1), Aggregate)) == 1


def test_an_update_is_not_asked_for_again_before_every_pause_is_lifted() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.tell(OPERATOR, FULL, UpdateDelayed("x", 1))
    assert dispatched(run.tell(Unpaused("storage"))) == []
    assert dispatched(run.tell(Unpaused("operator"))) == ["x"]


def test_when_there_is_room_again_before_the_delay_is_heard_of_the_update_is_asked_for_at_once() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.tell(FULL, Unpaused("storage"))
    assert dispatched(run.tell(UpdateDelayed("x", 1))) == ["x"]


def test_a_delayed_update_is_not_asked_for_from_who_is_away_or_has_sent_it() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.tell(FULL, UpdateDelayed("x", 1), UpdateDelayed("y", 1))
    run.update("x", 1)
    run.leave("y")
    assert dispatched(run.tell(Unpaused("storage"))) == []


def test_a_delay_of_another_round_or_of_nobody_asked_means_nothing() -> None:
    run = Run(rules(min_clients=2))
    assert run.tell(UpdateDelayed("x", 1)) == [], "no round is open"
    run.join("x", "y")
    run.update("x", 1)
    for event in (UpdateDelayed("y", 2), UpdateDelayed("x", 1), UpdateDelayed("w", 1)):
        assert run.tell(event) == []


def test_a_quorum_missed_too_often_pauses_the_run_and_keeps_what_came() -> None:
    run = Run(rules(deadline_s=9.0, quorum=Quorum(1.0), max_attempts=2, lost_quorum="pause"))
    run.join("x", "y", "z")
    run.update("x", 1)
    assert only(run.timer("round-deadline"), BeginRound)[0].attempt == 2
    run.update("y", 1)
    paused = run.timer("round-deadline")
    assert only(paused, Finish) == only(paused, BeginRound) == []
    assert run.decisions.pauses == {"quorum": "round 1 missed its quorum 2 times (2 of 3 updates came)"}
    assert run.timers == set(), "nothing ends a paused run but its operator"
    assert run.admits("x", 1) == ("duplicate", "")
    again = run.tell(Unpaused("operator"))
    assert only(again, BeginRound) == [BeginRound(1, 1, frozenset("xyz"), frozenset())]
    assert dispatched(again) == ["z"]
    assert only(run.update("z", 1), Aggregate) == [Aggregate(1, dict.fromkeys("xyz", TEN))]


def test_after_a_lost_quorum_the_attempts_are_counted_anew() -> None:
    run = Run(rules(deadline_s=9.0, quorum=Quorum(1.0), max_attempts=2, lost_quorum="pause"))
    run.join("x", "y", "z")
    for _ in range(2):
        run.timer("round-deadline")
        assert run.decisions.pauses == {}
        run.timer("round-deadline")
        assert "missed its quorum 2 times (0 of 3" in run.decisions.pauses["quorum"]
        run.tell(Unpaused("operator"))


def test_a_quorum_missed_too_often_fails_the_run_if_so_configured() -> None:
    run = Run(rules(max_attempts=1, lost_quorum="fail"))
    run.join("x", "y", "z")
    assert finish(run.tell(*(UpdateDeclined(c, 1, "no") for c in "xyz"))) == "failed"


def test_a_model_that_is_not_finite_pauses_the_run_and_moves_nothing() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.updates("xyz", 1)
    run.tell(AggregationFailed(1, "slot w would not be finite"))
    assert run.decisions.pauses == {"unsound": "round 1 makes no version: slot w would not be finite"}
    assert (run.decisions.version, run.decisions.phase) == (0, Phase.GATHERING)
    assert run.admits("x", 1) == ("duplicate", "")
    assert only(run.tell(Unpaused("operator")), Aggregate) == [Aggregate(1, dict.fromkeys("xyz", TEN))]


def test_a_failed_fold_of_another_round_changes_nothing() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    assert run.tell(AggregationFailed(1, "?")) == [], "nothing is folded"
    run.updates("xyz", 1)
    assert run.tell(AggregationFailed(2, "?")) == []
    assert run.tell(Aggregated(2)) == []
    assert run.decisions.phase is Phase.REDUCING


def test_waiting_for_clients_is_paused_too() -> None:
    run = Run(rules(gather_timeout_s=60.0))
    run.join("x", "y", "z")
    run.leave("z")
    run.updates("xy", 1)
    run.tell(Aggregated(1))
    assert run.timers == {GATHER}
    run.tell(OPERATOR)
    assert run.timers == set()
    assert run.tell(TimerFired(GATHER)) == [], "it ran out as the pause came"
    assert only(run.tell(Unpaused("operator")), StartTimer) == [StartTimer(GATHER, 60.0)]
    assert finish(run.timer(GATHER)) == "failed"


def test_a_restarted_run_may_be_paused_before_anybody_is_there() -> None:
    run = Run(rules(min_clients=2), version=1)
    run.decisions.restore({"x": Kept(frozenset("a"), TEN)}, {"x": 2})
    run.tell(OPERATOR)
    assert run.join("x", "y") == []
    assert run.admits("x", 2) == ("duplicate", "")
    assert dispatched(run.tell(Unpaused("operator"))) == ["y"]


def test_a_paused_run_can_be_stopped() -> None:
    run = Run(rules())
    run.tell(OPERATOR)
    assert finish(run.tell(StopRequested("ctrl-c"))) == "stopped"
    assert run.tell(Unpaused("operator")) == []
    assert run.tell(Joined("x", frozenset("a"))) == []


def test_enough_updates_during_a_pause_do_not_close_the_round_and_more_may_come() -> None:
    run = Run(rules(), sample=first(2))
    run.join("x", "y", "z")
    run.tell(OPERATOR)
    run.updates("xyz", 1)
    assert only(run.tell(Unpaused("operator")), Aggregate) == [Aggregate(1, dict.fromkeys("xyz", TEN))]
