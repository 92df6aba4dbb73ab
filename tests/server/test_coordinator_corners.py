"""Rare orders of events that the coordinator once got wrong."""

from __future__ import annotations

import pytest

from server.coordination import (
    Acknowledge,
    Aggregated,
    AggregationFailed,
    Dispatch,
    Left,
    Paused,
    RefuseUpdate,
    Screened,
    Unpaused,
    UpdateDelayed,
)
from server.coordinator import GATHER
from server.round import Quorum
from tests.server.coordinator_run import Run, dispatched, first, only, rules
from tests.server.test_coordinator_async import asynchronous, one_late


def test_a_withdrawn_update_does_not_make_an_older_one_count_again() -> None:
    run = asynchronous(wanted=3, screen=True, limit=5)
    run.updates("xyz", 1)
    run.tell(Screened(1, {}), Aggregated(1))
    run.updates("xyz", 2)
    run.tell(Screened(2, {"x": "huge"}), Aggregated(2))
    assert run.admits("x", 1)[0] != "wanted", "it is in version 1"


@pytest.mark.parametrize("screen", [True, False])
def test_an_update_of_the_closing_round_counts_in_its_next_attempt(screen: bool) -> None:
    run = asynchronous(screen=screen, quorum=Quorum(1.0))
    run.updates("yz", 1)
    run.update("x", 1)
    said = run.tell(Screened(1, {"y": "huge"}) if screen else AggregationFailed(1, "nan"))
    assert only(said, RefuseUpdate) == ([RefuseUpdate("y", 1, "norm_outlier", "huge")] if screen else [])
    assert only(said, Acknowledge) == [Acknowledge("x", 1, duplicate=False, counts_in=1)]


def test_who_is_at_work_when_a_quorum_is_missed_may_answer_in_the_next_attempt() -> None:
    run = asynchronous(quorum=Quorum(1.0), deadline_s=9.0)
    run.update("y", 1)
    run.timer("round-deadline")
    assert run.admits("x", 1) == ("wanted", ""), "x still trains for round 1"


def test_a_straggler_that_comes_back_while_a_round_closes_gets_new_work_in_the_next() -> None:
    run = asynchronous()
    run.updates("yz", 1)
    run.tell(Left("x"))
    run.join("x")
    assert "x" in dispatched(run.tell(Aggregated(1)))


def test_a_late_update_that_could_not_be_stored_while_a_round_closes_is_asked_for_again() -> None:
    run = asynchronous()
    run.updates("yz", 1)
    run.tell(Paused("storage", "full"), UpdateDelayed("x", 1), Aggregated(1))
    assert "x" in dispatched(run.tell(Unpaused("storage")))


def test_a_deferred_update_keeps_its_tasks_when_its_client_leaves() -> None:
    run = asynchronous()
    run.updates("yz", 1)
    run.update("x", 1)
    run.leave("x")
    run.tell(Aggregated(1))
    assert run.decisions.round is not None
    assert run.decisions.round.tasks_of("x") == frozenset("a")


def test_a_pause_before_the_run_has_begun_sets_no_time_limit() -> None:
    run = Run(rules(gather_timeout_s=60.0))
    run.tell(Paused("operator", "why"), Unpaused("operator"))
    assert GATHER not in run.timers, "before the run has begun it waits for ever"


def test_who_is_put_in_quarantine_by_an_old_update_loses_its_seat() -> None:
    run = one_late(quarantine_after=1, quarantine_rounds=2)
    run.join("x")  # asked for round 2
    run.rubbish("x", 1)
    run.tell(Left("x"))
    assert only(run.join("x"), Dispatch) == []


def test_who_was_not_asked_is_refused_while_a_round_closes_too() -> None:
    run = Run(rules(target_rounds=9, max_staleness=5, min_clients=2), sample=lambda c, _: first(1)(c & {"x"}, 1))
    run.join("x", "y")
    assert run.admits("y", 1) == ("refused", "not_asked")
    run.update("x", 1)
    assert run.admits("y", 1)[0] == "refused"


def test_who_came_back_with_its_delayed_update_is_not_asked_twice() -> None:
    run = Run(rules())
    run.join("x", "y", "z")
    run.tell(Paused("storage", "full"), UpdateDelayed("x", 1), Left("x"))
    assert dispatched(run.join("x")) == ["x"]
    assert dispatched(run.tell(Unpaused("storage"))) == []
