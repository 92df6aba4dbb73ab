"""The coordinator's asynchronous rounds: late updates count in the round they arrive in, once, with their staleness."""

from __future__ import annotations

import pytest

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
    Joined,
    Left,
    Note,
    Paused,
    RefuseUpdate,
    StartTimer,
    Strike,
    TimerFired,
    Unpaused,
    UpdateDeclined,
    UpdateDelayed,
)
from server.coordinator import Phase
from server.round import Quorum
from server.rules import Kept
from tests.server.coordinator_run import TEN, Run, dispatched, finish, first, only, only_x, rules

A = frozenset("a")


def asynchronous(wanted: int = 2, *, limit: int = 2, clients: str = "xyz", **changes: object) -> Run:
    """A run of many rounds whose first asks all these clients and closes with so many updates."""
    given: dict[str, object] = {"target_rounds": 9, "max_staleness": limit, "min_clients": 1}
    run = Run(rules(**given | changes), sample=first(wanted))
    run.tell(Paused("operator", "so that the first does not begin alone"))
    run.join(*clients)
    run.tell(Unpaused("operator"))
    return run


def one_late(**changes: object) -> Run:
    """x is at work on round 1; round 2 is open, and y and z are asked in it."""
    run = asynchronous(**changes)  # type: ignore[arg-type]  # passed on
    run.updates("yz", 1)
    run.tell(Aggregated(1))
    assert run.decisions.round is not None
    assert run.decisions.round.seated >= frozenset("xyz")
    return run


def folded(commands: list[Command]) -> Aggregate:
    """The fold that is commanded."""
    (command,) = only(commands, Aggregate)
    assert isinstance(command, Aggregate)
    return command


def test_a_full_buffer_closes_the_round_and_leaves_the_slow_at_work() -> None:
    run = asynchronous()
    run.update("y", 1)
    closed = run.update("z", 1)
    assert folded(closed) == Aggregate(1, {"y": TEN, "z": TEN})
    assert only(closed, Dismiss) == [], "x goes on with what it has"
    begun = run.tell(Aggregated(1))
    assert dispatched(begun) == ["y", "z"], "and is not given more"
    assert only(begun, BeginRound)[0].trainers == frozenset("yz")


def test_a_late_update_counts_in_the_round_it_arrives_in_with_its_staleness() -> None:
    run = one_late()
    assert run.admits("x", 1) == ("wanted", "")
    assert run.update("x", 1) == [Acknowledge("x", 1, duplicate=False, counts_in=2)]
    assert folded(run.update("y", 2)) == Aggregate(2, {"x": TEN, "y": TEN}, {"x": 1})
    assert dispatched(run.tell(Aggregated(2))) == ["x", "y"], "x is free again, z is at work"


def test_an_update_may_be_so_late_and_no_later() -> None:
    run = asynchronous(wanted=1, limit=2, clients="xy")
    run.update("y", 1)
    run.tell(Aggregated(1))
    run.update("y", 2)
    begun = run.tell(Aggregated(2))
    assert run.admits("x", 1) == ("wanted", ""), "two versions late"
    assert only(begun, Dismiss) == []
    run.update("y", 3)
    begun = run.tell(Aggregated(3))
    assert only(begun, Dismiss) == [Dismiss(frozenset("x"), 1, "its update would be more than 2 versions late")]
    assert run.admits("x", 1) == ("refused", "stale_round")
    assert only(run.update("x", 1), RefuseUpdate)[0].code == "stale_round"
    assert dispatched(begun) == ["x", "y"], "who was called off is asked anew"


def test_a_synchronous_round_takes_no_late_update() -> None:
    run = Run(rules(), sample=first(2))
    run.join("x", "y", "z")
    run.updates("yz", 1)
    assert run.admits("x", 1) == ("refused", "stale_round")
    run.tell(Aggregated(1))
    assert run.admits("x", 1) == ("refused", "stale_round")


def test_a_client_counts_once_per_version() -> None:
    run = one_late()
    run.update("x", 1)
    assert run.update("x", 1) == [Acknowledge("x", 1, duplicate=True, counts_in=2)]
    assert run.admits("x", 2) == ("refused", "not_asked"), "its next work comes with the next version"
    run.update("y", 2)
    assert run.update("x", 1) == [Acknowledge("x", 1, duplicate=True, counts_in=2)], "also while it is folded"
    run.tell(Aggregated(2))
    assert run.update("x", 1) == [Acknowledge("x", 1, duplicate=True, counts_in=3)], "and when it is in the model"


def test_what_counted_before_an_update_that_counted_later_is_refused() -> None:
    run = one_late(limit=5)
    run.update("x", 1)
    run.update("y", 2)
    run.tell(Aggregated(2))
    run.update("x", 3)
    assert run.admits("x", 1) == ("refused", "stale_round")
    assert run.admits("y", 2) == ("duplicate", "")
    assert run.admits("y", 1) == ("refused", "stale_round")
    run.update("y", 3)
    for client_id, number in (("x", 1), ("y", 1), ("y", 2)):
        assert run.admits(client_id, number) == ("refused", "stale_round"), "nor while the round closes"


def test_an_older_update_than_the_newest_counted_is_not_taken_even_if_it_never_counted() -> None:
    run = asynchronous(wanted=1, limit=5, clients="xy")
    run.update("y", 1)
    run.tell(Aggregated(1))
    run.join("x")  # without its work: asked for round 2
    run.update("x", 2)
    run.tell(Aggregated(2))
    assert run.admits("x", 1) == ("refused", "stale_round")


def test_a_late_update_that_comes_while_a_round_closes_is_decided_on_after_it() -> None:
    run = asynchronous()
    assert run.decisions.spool_round == run.decisions.counts_in == 1
    run.updates("yz", 1)
    assert run.decisions.spool_round == 2, "what is being folded stays as it is"
    assert run.admits("x", 1) == ("wanted", "")
    assert run.update("x", 1) == []
    assert run.admits("x", 1) == ("refused", "stale_round"), "one at a time"
    begun = run.tell(Aggregated(1))
    assert only(begun, Acknowledge) == [Acknowledge("x", 1, duplicate=False, counts_in=2)]
    assert run.decisions.spool_round == run.decisions.counts_in == 2
    assert only(begun, BeginRound)[0].trainers == frozenset("xyz")
    assert dispatched(begun) == ["y", "z"]
    assert folded(run.update("y", 2)) == Aggregate(2, {"x": TEN, "y": TEN}, {"x": 1})


def test_a_deferred_update_that_has_become_too_late_is_refused_and_its_client_asked_anew() -> None:
    run = asynchronous(wanted=1, limit=1, clients="xy")
    run.update("y", 1)
    run.tell(Aggregated(1))
    run.update("y", 2)
    assert run.update("x", 1) == [], "one version late now, two when it counts"
    begun = run.tell(Aggregated(2))
    assert only(begun, RefuseUpdate)[0].code == "stale_round"
    assert dispatched(begun) == ["x", "y"]


def test_deferred_updates_may_fill_the_next_buffer_at_once() -> None:
    run = asynchronous(wanted=2, clients="wxyz")
    run.updates("yz", 1)
    run.updates("wx", 1)
    begun = run.tell(Aggregated(1))
    assert folded(begun) == Aggregate(2, {"w": TEN, "x": TEN}, {"w": 1, "x": 1})
    assert only(begun, Dismiss) == [], "those asked go on"
    assert dispatched(run.tell(Aggregated(2))) == ["w", "x"]


def test_a_deferred_update_waits_out_a_pause() -> None:
    run = asynchronous()
    run.updates("yz", 1)
    run.update("x", 1)
    run.tell(Paused("operator", "why"))
    assert run.tell(Aggregated(1)) == [Acknowledge("x", 1, duplicate=False, counts_in=2)]
    assert run.admits("x", 1) == ("duplicate", "")
    assert only(run.tell(Unpaused("operator")), BeginRound)[0].trainers == frozenset("xyz")


def test_a_late_update_is_taken_while_a_paused_run_gathers() -> None:
    run = asynchronous()
    run.updates("yz", 1)
    run.tell(Paused("operator", "why"), Aggregated(1))
    assert run.decisions.round is None
    assert run.update("x", 1) == [Acknowledge("x", 1, duplicate=False, counts_in=2)]
    assert run.update("x", 1) == [Acknowledge("x", 1, duplicate=True, counts_in=2)]
    run.tell(Unpaused("operator"))
    assert folded(run.update("z", 2)).staleness == {"x": 1}


def test_a_fold_that_fails_decides_on_late_updates_too() -> None:
    run = one_late()
    run.updates("yz", 2)
    run.update("x", 1)
    failed = run.tell(AggregationFailed(2, "not finite"))
    assert only(failed, Acknowledge) == [Acknowledge("x", 1, duplicate=False, counts_in=2)]
    assert folded(run.tell(Unpaused("operator"))) == Aggregate(2, dict.fromkeys("xyz", TEN), {"x": 1})


def test_a_client_that_comes_back_without_its_work_gets_new_work() -> None:
    run = one_late()
    assert run.tell(Left("x")) == [StartTimer("grace:x", 15.0)]
    assert run.join("x") == [CancelTimer("grace:x"), Dispatch("x", 2, 1, train=True, evaluate=False)]
    assert run.decisions.round is not None
    assert run.decisions.round.trainers.keys() == set("xyz")
    assert folded(run.updates("xy", 2)) == Aggregate(2, {"x": TEN, "y": TEN})


def test_a_client_that_comes_back_with_its_work_done_is_told_to_leave_the_new() -> None:
    run = one_late()
    run.tell(Left("x"), Joined("x", A))
    assert run.update("x", 1) == [
        Acknowledge("x", 1, duplicate=False, counts_in=2),
        Dismiss(frozenset("x"), 2, "its late update counts in this round"),
    ]
    assert run.admits("x", 2) == ("refused", "not_asked")
    assert folded(run.update("z", 2)) == Aggregate(2, {"x": TEN, "z": TEN}, {"x": 1})


def test_a_straggler_whose_grace_runs_out_is_waited_for_no_more() -> None:
    run = one_late()
    run.tell(Left("x"))
    lost = run.timer("grace")
    assert only(lost, Note)[0].text == "round 2 goes on without x: it is gone"
    assert run.admits("x", 1) == ("refused", "stale_round")
    assert folded(run.updates("yz", 2)).contributions.keys() == set("yz")
    run.join("x")
    assert "x" in dispatched(run.tell(Aggregated(2)))


def test_a_straggler_that_says_goodbye_may_be_the_last_one_waited_for() -> None:
    run = one_late(quorum=Quorum(0.5))
    run.leave("z")
    run.update("y", 2)
    assert folded(run.leave("x")) == Aggregate(2, {"y": TEN})


def test_a_straggler_lost_while_a_round_closes_is_not_waited_for_in_the_next() -> None:
    run = asynchronous()
    run.updates("yz", 1)
    assert run.leave("x") == [], "no seat is lost: the round has closed"
    run.tell(Aggregated(1))
    assert run.decisions.round is not None
    assert run.decisions.round.seated == frozenset("yz")


@pytest.mark.parametrize("rejects", [False, True])
def test_a_straggler_that_cannot_do_its_old_work_gives_up_its_seat_and_is_asked_next_time(rejects: bool) -> None:
    run = one_late()
    gone = run.rubbish("x", 1) if rejects else run.tell(UpdateDeclined("x", 1, "no memory"))
    assert "round 2 goes on without x" in only(gone, Note)[0].text
    run.updates("yz", 2)
    assert dispatched(run.tell(Aggregated(2))) == ["x", "y", "z"]


def test_a_refused_old_update_of_a_client_with_new_work_takes_nothing_from_it() -> None:
    run = one_late()
    run.join("x")
    assert run.rubbish("x", 1) == [Strike("x", 2)]
    assert run.admits("x", 2) == ("wanted", "")


def test_a_straggler_whose_update_could_not_be_stored_is_asked_again_when_there_is_room() -> None:
    run = one_late()
    run.tell(Paused("storage", "full"), UpdateDelayed("x", 1))
    again = run.tell(Unpaused("storage"))
    assert dispatched(again) == ["x"]
    assert run.admits("x", 1) == ("wanted", "")


def test_stragglers_alone_may_make_a_version() -> None:
    run = asynchronous(wanted=2, clients="wxyz", quorum=Quorum(0.1))
    run.updates("yz", 1)
    run.tell(Aggregated(1))
    for client_id in "yz":
        run.tell(UpdateDeclined(client_id, 2, "no memory"))
    assert folded(run.updates("wx", 1)) == Aggregate(2, {"w": TEN, "x": TEN}, {"w": 1, "x": 1})


def test_the_quorum_counts_stragglers_among_those_asked() -> None:
    run = asynchronous(wanted=4, clients="wxyz", deadline_s=9.0, quorum=Quorum(0.5))
    run.updates("yz", 1)
    run.timer("round-deadline")
    run.tell(Aggregated(1))
    run.update("y", 2)
    missed = run.timer("round-deadline")
    assert only(missed, BeginRound)[0].attempt == 2, "one of four (two asked, two late) is less than half"
    assert folded([*run.update("w", 1), *run.timer("round-deadline")]).staleness == {"w": 1}


def test_a_late_update_survives_an_attempt_without_quorum_with_its_staleness() -> None:
    run = one_late(quorum=Quorum(1.0))
    run.update("x", 1)
    run.tell(UpdateDeclined("z", 2, "no memory"))
    again = run.tell(UpdateDeclined("y", 2, "no memory"))
    assert only(again, BeginRound) == [BeginRound(2, 2, frozenset("xyz"), frozenset())]
    assert dispatched(again) == ["y", "z"]
    assert run.admits("x", 1) == ("duplicate", "")
    assert folded(run.update("y", 2)) == Aggregate(2, {"x": TEN, "y": TEN}, {"x": 1})


def test_evaluations_alone_leave_nobody_at_work() -> None:
    run = asynchronous(evaluate="all")
    run.updates("yz", 1)
    assert run.decisions.round is not None
    assert dispatched(run.tell(Aggregated(1))) == ["y", "z"]
    run.update("y", 2)
    run.tell(EvaluationArrived("y", 1))
    closed = run.update("x", 1)
    assert only(closed, Dismiss) == [], "z evaluates and trains: it stays at work"
    assert run.admits("z", 2) == ("wanted", "")


def test_who_only_evaluates_is_dismissed_when_the_buffer_is_full() -> None:
    run = Run(rules(target_rounds=9, max_staleness=2, evaluate="all"), sample=only_x)
    run.join("x", "y", "z")
    for client_id in "xy":
        run.tell(EvaluationArrived(client_id, 0))
    run.update("x", 1)
    done = run.tell(Left("z", for_good=True))
    assert folded(done) == Aggregate(1, {"x": TEN})
    run = Run(rules(target_rounds=9, max_staleness=2, evaluate="all"), sample=first(1))
    run.join("x", "y", "z")
    run.tell(EvaluationArrived("x", 0))
    closed = run.update("x", 1)
    assert only(closed, Dismiss) == [], "y and z train too"


def test_nobody_asked_means_nothing_to_take_late() -> None:
    run = asynchronous(clients="xyz")
    run.tell(UpdateDeclined("x", 1, "no"))
    run.updates("yz", 1)
    run.tell(Aggregated(1))
    assert run.admits("x", 1) == ("wanted", ""), "it was asked for round 2, and may have changed its mind"
    run.tell(UpdateDeclined("x", 2, "no"))
    assert run.admits("x", 1) == ("refused", "stale_round")
    assert run.admits("w", 1) == ("refused", "stale_round")
    assert run.admits("w", 2) == ("refused", "not_asked")


def test_a_late_update_of_a_round_that_has_not_begun_is_refused() -> None:
    run = one_late()
    assert run.admits("x", 3) == ("refused", "future_round")
    assert only(run.update("x", 3), RefuseUpdate)[0].code == "future_round"


def test_the_final_evaluation_takes_no_late_update() -> None:
    run = asynchronous(wanted=1, limit=9, clients="xy", evaluate="all", target_rounds=1)
    run.tell(EvaluationArrived("y", 0))
    run.update("y", 1)
    last = run.tell(Aggregated(1))
    assert run.decisions.phase is Phase.EVALUATING
    assert only(last, Dispatch) == [Dispatch(c, 2, 1, train=False, evaluate=True) for c in "xy"]
    assert run.admits("x", 1) == ("refused", "stale_round")
    assert finish(run.tell(EvaluationArrived("x", 1), EvaluationArrived("y", 1))) == "finished"


def test_a_restart_takes_late_updates_that_the_process_before_it_asked_for() -> None:
    run = Run(rules(target_rounds=9, max_staleness=2), sample=first(2), version=3)
    present = {"x": A, "y": A, "z": A}
    run.decisions.restore({"y": Kept(A, TEN, 1)}, {"y": 3, "z": 3}, present, begun=4)
    assert run.admits("stranger", 2) == ("refused", "stale_round")
    assert run.admits("x", 2) == ("wanted", "")
    assert run.admits("x", 1) == ("refused", "stale_round")
    assert run.admits("y", 3) == run.admits("z", 3) == ("duplicate", "")
    assert run.admits("y", 2) == run.admits("z", 2) == ("refused", "stale_round")
    assert run.update("x", 2) == [Acknowledge("x", 2, duplicate=False, counts_in=4)]
    assert folded(run.join("x", "y", "z")) == Aggregate(4, {"x": TEN, "y": TEN}, {"x": 2, "y": 1})


def test_a_grace_that_runs_out_while_a_round_closes_frees_the_straggler() -> None:
    run = asynchronous()
    run.tell(Left("x"))
    run.updates("yz", 1)
    assert "grace:x" in run.timers, "its seat is kept beyond its round"
    run.tell(TimerFired("grace:x"))
    run.tell(Aggregated(1))
    assert run.decisions.round is not None
    assert run.decisions.round.seated == frozenset("yz")
