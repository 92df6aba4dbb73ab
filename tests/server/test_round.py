"""One round: seats, answers, quorum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.round import Quorum, Round

A, B = frozenset("a"), frozenset("b")


def a_round() -> Round:
    return Round(3, {"x": A, "y": B}, frozenset({"y", "z"}))


def test_a_seat_lasts_until_nothing_more_is_expected() -> None:
    current = a_round()
    assert current.version == 2
    assert current.seated == {"x", "y", "z"}
    current.accept_update("y", {"b": 1})
    assert "y" in current.seated
    current.accept_evaluation("y")
    assert current.seated == {"x", "z"}
    current.give_up("z")
    assert not current.complete
    current.accept_update("x", {"a": 1})
    assert current.complete


def test_an_update_that_is_not_expected_is_an_error() -> None:
    current = a_round()
    current.accept_update("x", {"a": 1})
    for client_id in ("x", "z", "nobody"):
        with pytest.raises(ValueError, match="round 3 expects no update"):
            current.accept_update(client_id, {"a": 1})


def test_a_client_that_gave_up_is_expected_no_more() -> None:
    current = a_round()
    current.give_up("y")
    assert not current.expects_update("y")
    assert not current.expects_evaluation("y")


def test_answers_from_before_are_not_expected_again() -> None:
    current = Round(3, {"x": A, "y": B}, frozenset(), answered={"x": {"a": 1}})
    assert current.seated == {"y"}
    assert not current.expects_update("x")


@given(st.integers(1, 200), st.integers(0, 200), st.integers(1, 100))
def test_quorum_is_a_share_without_rounding_errors(asked: int, came: int, percent: int) -> None:
    came = min(came, asked)
    current = Round(1, {str(c): A for c in range(asked)}, frozenset(), quorum=Quorum(percent / 100))
    for number in range(came):
        current.accept_update(str(number), {"a": 1})
    assert current.has_quorum == (came >= 1 and came * 100 >= percent * asked)


def test_quorum_per_task_counts_tasks_that_were_asked() -> None:
    current = Round(1, {"x": A, "y": A, "z": A | B}, frozenset(), quorum=Quorum(0.01, per_task=1))
    current.accept_update("x", {"a": 1})
    assert not current.has_quorum, "nobody answered for b"
    current.accept_update("z", {"a": 1, "b": 1})
    assert current.has_quorum
    current.quorum = Quorum(0.01, per_task=2)
    assert not current.has_quorum


def test_a_round_that_asks_nobody_to_train_makes_no_version() -> None:
    assert not Round(1, {}, frozenset("x")).has_quorum


def test_the_first_updates_suffice_when_more_were_asked_than_wanted() -> None:
    current = Round(1, {"x": A, "y": A, "z": B}, frozenset("y"), quorum=Quorum(1.0), wanted=2)
    current.accept_update("x", {"a": 1})
    assert not current.complete
    current.accept_update("z", {"b": 1})
    assert current.complete, "whoever still trains or evaluates"
    assert current.has_quorum, "the share is one of those wanted, not of those asked"


def test_enough_updates_are_not_enough_while_a_task_lacks_its_own() -> None:
    current = Round(1, {"x": A, "y": A, "z": B}, frozenset(), quorum=Quorum(0.5, per_task=1), wanted=2)
    current.accept_update("x", {"a": 1})
    current.accept_update("y", {"a": 1})
    assert not current.complete
    current.accept_update("z", {"b": 1})
    assert current.complete


def test_a_late_update_counts_once_and_with_its_staleness() -> None:
    current = Round(5, {"x": A}, frozenset(), stragglers={"y": B})
    assert current.seated == {"x", "y"}
    assert current.training == {"x"}
    assert current.expects_late_update("y")
    assert not current.expects_update("y")
    current.accept_update("y", {"b": 1}, staleness=2)
    assert current.staleness == {"y": 2}
    assert not current.expects_late_update("y")
    with pytest.raises(ValueError, match="expects no update"):
        current.accept_update("y", {"b": 1})


def test_a_straggler_that_lost_its_work_trains_anew() -> None:
    current = Round(5, {"x": A}, frozenset(), stragglers={"y": B})
    current.begin_anew("y", B)
    assert current.expects_update("y")
    assert not current.expects_late_update("y")
    assert current.trainers == {"x": A, "y": B}


def test_a_withdrawn_update_counts_for_no_quorum() -> None:
    current = Round(1, {"x": A, "y": A}, frozenset(), quorum=Quorum(1.0))
    current.accept_update("x", {"a": 1})
    current.accept_update("y", {"a": 1})
    assert current.has_quorum
    current.withdraw("y")
    assert not current.has_quorum
    assert current.answered == {"x": {"a": 1}}
