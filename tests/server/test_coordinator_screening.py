"""The coordinator's judgement of clients: outliers are withdrawn, who is bad too often is left out for a while."""

from __future__ import annotations

import pytest

from server.coordination import (
    Acknowledge,
    Aggregate,
    Aggregated,
    BeginRound,
    Command,
    Dispatch,
    EvaluationArrived,
    Note,
    Paused,
    Quarantine,
    RefuseUpdate,
    Released,
    Screen,
    Screened,
    Strike,
    Unpaused,
    UpdateDeclined,
    UpdateRefused,
)
from server.coordinator import Phase
from server.quarantine import BAD_UPDATES
from server.round import Quorum
from server.rules import Kept
from tests.server.coordinator_run import TEN, Run, dispatched, finish, first, only, quarantined, rules

A = frozenset("a")
HUGE = "its norm is 40 times the cohort's median"


def strict(**changes: object) -> Run:
    """One bad update puts a client in quarantine for two rounds; three clients are there."""
    given: dict[str, object] = {"target_rounds": 9, "quarantine_after": 1, "quarantine_rounds": 2, "min_clients": 3}
    run = Run(rules(**given | changes))
    run.join("x", "y", "z")
    return run


def screened(**outliers: str) -> Screened:
    """Round 1 has been looked at."""
    return Screened(1, outliers)


# --- screening


def test_a_closed_round_is_looked_at_before_it_is_folded() -> None:
    run = Run(rules(screen=True))
    run.join("x", "y", "z")
    closed = run.updates("xyz", 1)
    assert only(closed, Screen) == [Screen(1, frozenset("xyz"))]
    assert only(closed, Aggregate) == []
    assert run.decisions.phase is Phase.SCREENING
    assert run.tell(screened()) == [Aggregate(1, dict.fromkeys("xyz", TEN))]


def test_an_outlier_is_withdrawn_by_name_and_the_others_count() -> None:
    run = Run(rules(screen=True))
    run.join("x", "y", "z")
    run.updates("xyz", 1)
    assert run.tell(screened(y=HUGE)) == [
        RefuseUpdate("y", 1, "norm_outlier", HUGE),
        Strike("y", 1),
        Aggregate(1, {"x": TEN, "z": TEN}),
    ]
    assert run.admits("y", 1) == ("refused", "stale_round"), "nothing of it counts, so it is no duplicate"
    assert run.admits("x", 1) == ("duplicate", "")


def test_the_quorum_is_looked_at_again_without_the_outliers() -> None:
    run = Run(rules(screen=True, quorum=Quorum(1.0)))
    run.join("x", "y", "z")
    run.updates("xyz", 1)
    again = run.tell(screened(y=HUGE))
    assert only(again, Aggregate) == []
    assert only(again, BeginRound) == [BeginRound(1, 2, frozenset("xyz"), frozenset())]
    assert dispatched(again) == ["y"], "who was an outlier is asked once more"
    assert run.update("y", 1)[0] == Acknowledge("y", 1, duplicate=False, counts_in=1)
    assert only(run.tell(screened()), Aggregate) == [Aggregate(1, dict.fromkeys("xyz", TEN))]


def test_the_quorum_of_a_task_is_looked_at_again_without_the_outliers() -> None:
    run = Run(rules(screen=True, tasks=frozenset("ab"), quorum=Quorum(0.1, per_task=1), max_attempts=1))
    run.join("x", "y", "z", tasks={"z": "b"})
    run.updates("xyz", 1)
    assert finish(run.tell(screened(z=HUGE))) == "failed"


def test_outliers_that_cost_the_quorum_too_often_pause_the_run() -> None:
    run = Run(rules(screen=True, quorum=Quorum(1.0), max_attempts=1, lost_quorum="pause"))
    run.join("x", "y", "z")
    run.updates("xyz", 1)
    run.tell(screened(y=HUGE))
    assert "missed its quorum 1 times (2 of 3 updates came)" in run.decisions.pauses["quorum"]


def test_a_look_at_another_round_or_at_an_open_one_changes_nothing() -> None:
    run = Run(rules(screen=True))
    run.join("x", "y", "z")
    assert run.tell(screened(x=HUGE)) == [], "it is open"
    run.updates("xyz", 1)
    assert run.tell(Screened(2, {"x": HUGE})) == []
    run.tell(screened())
    assert run.tell(screened(x=HUGE)) == [], "it was looked at"


def test_without_a_quorum_there_is_nothing_to_look_at() -> None:
    run = Run(rules(screen=True, quorum=Quorum(1.0)))
    run.join("x", "y", "z")
    run.updates("xy", 1)
    missed = run.tell(UpdateDeclined("z", 1, "no"))
    assert only(missed, Screen) == []
    assert only(missed, BeginRound)[0].attempt == 2


def test_a_pause_does_not_keep_a_closed_round_from_being_judged() -> None:
    run = Run(rules(screen=True, quorum=Quorum(1.0)))
    run.join("x", "y", "z")
    run.updates("xyz", 1)
    run.tell(Paused("operator", "why"))
    assert only(run.tell(screened(y=HUGE)), BeginRound) == [], "another attempt waits"
    assert dispatched(run.tell(Unpaused("operator"))) == ["y"]


def test_a_late_outlier_is_refused_by_the_round_it_was_trained_for() -> None:
    run = Run(rules(target_rounds=9, screen=True, max_staleness=2, min_clients=3), sample=first(2))
    run.join("x", "y", "z")
    run.updates("yz", 1)
    run.tell(screened(), Aggregated(1))
    run.update("x", 1)
    run.update("y", 2)
    assert run.decisions.phase is Phase.SCREENING
    judged = run.tell(Screened(2, {"x": HUGE}))
    assert only(judged, RefuseUpdate) == [RefuseUpdate("x", 1, "norm_outlier", HUGE)]
    assert only(judged, Aggregate) == [Aggregate(2, {"y": TEN})], "nor does its staleness stay"


# --- quarantine


@pytest.mark.parametrize("code", sorted(BAD_UPDATES))
def test_a_bad_update_costs_the_seat_and_leads_to_quarantine(code: str) -> None:
    run = strict()
    bad = run.tell(UpdateRefused("x", 1, code, "why"))
    assert only(bad, Quarantine) == [Quarantine("x", 3, f"{code}: why")]
    assert f"x is in quarantine until version 3: too many bad updates, at last {code}: why" in only(bad, Note)[0].text
    assert run.admits("x", 1) == ("refused", "quarantined")
    assert only(run.updates("yz", 1), Aggregate) == [Aggregate(1, {"y": TEN, "z": TEN})]


@pytest.mark.parametrize("code", ["internal", "quarantined", "authentication", "stale_version"])
def test_bad_luck_costs_the_seat_alone(code: str) -> None:
    run = strict()
    assert quarantined(run.tell(UpdateRefused("x", 1, code, "why"))) == {}
    assert run.admits("x", 1) == ("refused", "not_asked")


def test_who_is_in_quarantine_is_not_asked_and_refused_by_name_until_its_time_is_over() -> None:
    run = strict()
    run.rubbish("x", 1)
    run.updates("yz", 1)
    for number in (2, 3):
        begun = run.tell(Aggregated(number - 1))
        assert dispatched(begun) == ["y", "z"]
        assert run.admits("x", number) == ("refused", "quarantined")
        assert only(run.update("x", number), RefuseUpdate)[0].code == "quarantined"
        run.updates("yz", number)
    assert dispatched(run.tell(Aggregated(3))) == ["x", "y", "z"]
    assert run.admits("x", 4) == ("wanted", "")


def test_who_is_in_quarantine_counts_as_present() -> None:
    run = strict()
    run.rubbish("x", 1)
    run.updates("yz", 1)
    assert dispatched(run.tell(Aggregated(1))) == ["y", "z"], "three are connected, as min_clients wants"


def test_who_is_in_quarantine_does_not_evaluate() -> None:
    run = strict(evaluate="all", target_rounds=1)
    run.rubbish("x", 1)
    assert run.decisions.round is not None
    assert run.decisions.round.seated == frozenset("yz")
    run.tell(EvaluationArrived("y", 0), EvaluationArrived("z", 0))
    run.updates("yz", 1)
    last = run.tell(Aggregated(1))
    assert only(last, Dispatch) == [Dispatch(c, 2, 1, train=False, evaluate=True) for c in "yz"]


def test_who_comes_back_in_quarantine_gets_no_work() -> None:
    run = strict()
    run.rubbish("x", 1)
    run.leave("x")
    assert dispatched(run.join("x")) == []


def test_a_run_whose_clients_are_all_in_quarantine_waits() -> None:
    run = strict(gather_timeout_s=60.0, max_attempts=9)
    run.rubbish("x", 1)
    run.rubbish("y", 1)
    waiting = run.rubbish("z", 1)
    texts = [note.text for note in only(waiting, Note)]
    assert "waiting for clients: 3 clients are connected, all of them in quarantine" in texts
    assert "gather" in run.timers, "not for ever"
    assert dispatched(run.join("w")) == ["w"], "a client that did nothing wrong"


def test_an_operator_releases_a_client_and_the_run_goes_on() -> None:
    run = strict(max_attempts=9)
    for client_id in "xyz":
        run.rubbish(client_id, 1)
    released = run.tell(Released("y"))
    assert only(released, Quarantine) == [Quarantine("y", 0, "released by an operator")]
    assert dispatched(released) == ["y"]
    assert run.admits("x", 1) == ("refused", "quarantined")


def test_who_is_released_while_a_round_is_open_takes_part_in_the_next() -> None:
    run = strict()
    run.rubbish("x", 1)
    assert dispatched(run.tell(Released("x"))) == []
    assert run.admits("x", 1) == ("refused", "not_asked")
    run.updates("yz", 1)
    assert dispatched(run.tell(Aggregated(1))) == ["x", "y", "z"]


def test_a_release_begins_no_round_during_a_pause() -> None:
    run = strict(max_attempts=9)
    for client_id in "xyz":
        run.rubbish(client_id, 1)
    run.tell(Paused("operator", "why"))
    assert dispatched(run.tell(Released("y"))) == []
    assert dispatched(run.tell(Unpaused("operator"))) == ["y"]


def test_strikes_are_counted_per_round_and_outliers_are_strikes() -> None:
    run = strict(screen=True, quarantine_after=2)

    def judged(number: int, *, also_rubbish: bool) -> list[Command]:
        if also_rubbish:
            assert quarantined(run.rubbish("w", number)) == {}, "w is nobody yet"
        run.updates("xyz", number)
        found = run.tell(Screened(number, {"x": HUGE}))
        run.tell(Aggregated(number))
        return found

    assert quarantined(judged(1, also_rubbish=True)) == {}
    assert quarantined(judged(2, also_rubbish=False)) == {"x": 4}
    assert run.admits("x", 3) == ("refused", "quarantined")


def test_repeated_rubbish_in_one_round_is_one_strike() -> None:
    run = strict(quarantine_after=2, max_attempts=9, quorum=Quorum(1.0))
    assert [quarantined(run.rubbish("x", 1)) for _ in range(5)] == [{}] * 5
    run.updates("yz", 1)
    run.update("x", 1)  # in the second attempt it does better
    run.tell(Aggregated(1))
    assert quarantined(run.rubbish("x", 2)) == {"x": 4}


def test_what_was_accepted_before_the_quarantine_counts() -> None:
    run = strict(screen=True, quorum=Quorum(0.6), quarantine_rounds=1)
    run.updates("xyz", 1)
    run.tell(screened(), Aggregated(1))
    run.update("x", 2)
    run.rubbish("x", 2)  # it sends another
    assert run.admits("x", 2) == ("duplicate", ""), "it was acknowledged"
    run.updates("yz", 2)
    assert only(run.tell(Screened(2, {})), Aggregate)[0].contributions.keys() == set("xyz")


def test_a_quarantine_from_before_a_restart_holds() -> None:
    run = Run(rules(target_rounds=9, quarantine_after=2, min_clients=3), version=4)
    run.decisions.quarantine.restore([("y", 4)], [("x", 6), ("z", 3)])
    run.decisions.restore({}, {"x": 4})
    assert dispatched(run.join("x", "y", "z")) == ["y", "z"]
    assert run.admits("x", 5) == ("refused", "quarantined")
    assert quarantined(run.rubbish("y", 5)) == {"y": 6}, "its second strike"


def test_an_update_kept_from_before_a_restart_counts_although_its_client_is_in_quarantine() -> None:
    run = Run(rules(target_rounds=9, quarantine_after=1, min_clients=2), version=4)
    run.decisions.quarantine.restore([], [("x", 6)])
    run.decisions.restore({"x": Kept(A, TEN)}, {"x": 5})
    begun = run.join("x", "y")
    assert dispatched(begun) == ["y"]
    assert only(run.update("y", 5), Aggregate) == [Aggregate(5, {"x": TEN, "y": TEN})]
