"""The coordinator where some clients, or all, have nothing to train."""

from __future__ import annotations

from collections.abc import Iterable

from server.coordination import (
    Aggregate,
    Aggregated,
    BeginRound,
    Command,
    Dispatch,
    EvaluationArrived,
    EvaluationsComplete,
    Finish,
    Joined,
    Left,
    Note,
    Paused,
    Unpaused,
    UpdateDelayed,
)
from server.coordinator import Coordinator, Phase
from server.outlook import Outlook
from server.round import Quorum
from tests.server.coordinator_run import TEN, Run, first, only, rules

A, B, BOTH = frozenset("a"), frozenset("b"), frozenset("ab")


def run_of(trained: frozenset[str], end: str = "", **changes: object) -> Run:
    given: dict[str, object] = {
        "target_rounds": 3,
        "min_clients": 2,
        "tasks": BOTH,
        "quorum": Quorum(1.0),
        "evaluate": "all",
    }
    run = Run(rules(**given | changes))
    run.decisions = Coordinator(run.rules, run.sample, 0, Outlook(trained, end))
    return run


def work(commands: Iterable[Command]) -> dict[str, tuple[bool, bool]]:
    """Client to what it is asked: (train, evaluate)."""
    return {c.client_id: (c.train, c.evaluate) for c in commands if isinstance(c, Dispatch)}


def test_who_has_nothing_to_train_evaluates_and_no_round_waits_for_its_update() -> None:
    run = run_of(A)
    run.join("x", "y", "z", tasks={"y": "b", "z": "b"})
    assert work(run.commands) == {"x": (True, True), "y": (False, True)}
    run.tell(EvaluationArrived("x", 0), EvaluationArrived("y", 0))
    assert run.decisions.admission("y", 1)[:2] == ("refused", "not_asked")
    closed = run.update("x", 1)
    assert only(closed, Aggregate) == [Aggregate(1, {"x": TEN})]
    begun = run.tell(Aggregated(1))
    assert work(begun) == {"x": (True, True), "y": (False, True), "z": (False, True)}
    assert only(begun, BeginRound)[0].trainers == {"x"}


def test_what_the_next_version_opens_is_trained_from_then_on() -> None:
    run = run_of(A)
    run.join("x", "y", tasks={"y": "b"})
    run.tell(EvaluationArrived("x", 0), EvaluationArrived("y", 0))
    run.update("x", 1)
    assert work(run.tell(Aggregated(1, Outlook(BOTH)))) == {"x": (True, True), "y": (True, True)}
    assert run.decisions.outlook.trained == BOTH


def test_a_client_of_two_tasks_trains_when_one_of_them_does() -> None:
    run = run_of(A)
    commands = run.tell(Joined("x", BOTH), Joined("y", B))
    assert work(commands) == {"x": (True, True), "y": (False, True)}


def test_with_nothing_to_train_version_0_is_evaluated_and_the_run_is_finished() -> None:
    run = run_of(frozenset(), "everything is frozen")
    begun = run.join("x", "y")
    assert work(begun) == {"x": (False, True), "y": (False, True)}
    assert run.decisions.phase is Phase.EVALUATING
    assert not only(run.commands, BeginRound)
    end = run.tell(EvaluationArrived("x", 0), EvaluationArrived("y", 0))
    assert EvaluationsComplete(0) in end
    assert only(end, Finish) == [Finish("finished", "everything is frozen")]


def test_a_version_that_is_the_last_early_is_evaluated_by_all() -> None:
    run = run_of(BOTH)
    run.join("x", "y")
    run.tell(EvaluationArrived("x", 0), EvaluationArrived("y", 0))
    run.update("x", 1)
    run.update("y", 1)
    last = run.tell(Aggregated(1, Outlook(BOTH, "no better")))
    assert work(last) == {"x": (False, True), "y": (False, True)}
    end = run.tell(EvaluationArrived("x", 1), EvaluationArrived("y", 1))
    assert only(end, Finish) == [Finish("finished", "no better")]


def test_the_target_is_the_reason_where_both_come_together() -> None:
    run = run_of(BOTH, target_rounds=1, evaluate="none")
    run.join("x", "y")
    run.update("x", 1)
    run.update("y", 1)
    assert only(run.tell(Aggregated(1, Outlook(BOTH, "no better"))), Finish) == [
        Finish("finished", "all 1 rounds are done")
    ]


def test_a_round_waits_for_somebody_who_has_something_to_train() -> None:
    run = run_of(A)
    waiting = run.join("y", "z", tasks={"y": "b", "z": "b"})
    assert only(waiting, Note) == [Note("waiting for clients: none of the 2 clients has anything to train in round 1")]
    assert only(run.join("x"), BeginRound)


def one_late() -> Run:
    """Asynchronous: x is at work on round 1; in round 2, which is open, there is nothing to train for it."""
    run = run_of(BOTH, max_staleness=3, evaluate="none", quorum=Quorum(0.1))
    run.decisions = Coordinator(run.rules, first(2), 0, Outlook(BOTH))
    run.tell(Paused("operator", "so that all are there"))
    run.join("x", "y", "z", tasks={"x": "a", "y": "b", "z": "b"})
    run.tell(Unpaused("operator"))
    run.updates("yz", 1)
    assert work(run.tell(Aggregated(1, Outlook(B)))) == {"y": (True, False), "z": (True, False)}
    return run


def test_a_straggler_that_comes_back_with_nothing_to_train_is_not_asked_anew() -> None:
    run = one_late()
    run.tell(Left("x"))
    assert work(run.tell(Joined("x", A))) == {}
    assert run.decisions.round is not None
    assert run.decisions.round.seated == {"y", "z"}, "nobody waits for what it may have lost"
    run.update("y", 2)
    assert only(run.update("z", 2), Aggregate)


def test_a_late_update_that_was_not_stored_is_not_asked_for_where_nothing_is_to_train() -> None:
    run = one_late()
    run.update("y", 2)
    assert work(run.tell(UpdateDelayed("x", 1))) == {}
    assert only(run.update("z", 2), Aggregate)


def test_a_late_update_counts_although_its_client_has_nothing_to_train_now() -> None:
    run = one_late()
    run.update("x", 1)
    assert only(run.update("y", 2), Aggregate) == [Aggregate(2, {"x": TEN, "y": TEN}, {"x": 1})]
