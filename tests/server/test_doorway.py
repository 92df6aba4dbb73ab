from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.doorway import Doorway


def test_the_oldest_that_has_said_nothing_leaves_for_a_newcomer() -> None:
    doorway = Doorway(2, 2)
    assert [doorway.arrived(number, "a") for number in range(4)] == [None, None, 0, 1]
    assert doorway.strangers == 2


def test_whoever_has_been_admitted_never_leaves_for_others() -> None:
    doorway = Doorway(1, 1)
    doorway.arrived(0, "a")
    doorway.admitted(0)
    assert [doorway.arrived(number, "a") for number in range(1, 5)] == [None, 1, 2, 3]
    assert doorway.clients == 1


def test_visitors_leave_for_visitors_and_not_for_strangers() -> None:
    doorway = Doorway(8, 2)
    for number in range(4):
        doorway.arrived(number, "a")
    assert [doorway.asked(number) for number in range(4)] == [None, None, 0, 1]
    assert doorway.visitors == 2
    assert doorway.asked(3) is None  # a second request of the same connection


def test_one_that_was_told_to_leave_does_not_come_back_by_a_late_hello() -> None:
    doorway = Doorway(1, 1)
    doorway.arrived(0, "a")
    assert doorway.arrived(1, "a") == 0
    doorway.admitted(0)
    assert doorway.clients == 0


def test_the_address_that_has_most_makes_room() -> None:
    doorway = Doorway(4, 2)
    doorway.arrived(0, "client")
    assert [doorway.arrived(number, "crowd") for number in range(1, 100)] == [None] * 3 + list(range(1, 97))
    assert doorway.arrived(100, "another") == 97


@given(st.lists(st.tuples(st.sampled_from(["arrived", "asked", "admitted", "gone"]), st.integers(0, 30)), max_size=80))
def test_whatever_happens_bounds_hold_and_nobody_is_in_two_places(steps: list[tuple[str, int]]) -> None:
    doorway = Doorway(3, 2)
    seen: set[int] = set()
    admitted: set[int] = set()
    for step, number in steps:
        if (step == "arrived") == (number in seen):
            continue  # each number is one connection, which arrives first, and once
        seen.add(number)
        pushed = doorway.arrived(number, "ab"[number % 2]) if step == "arrived" else getattr(doorway, step)(number)
        if step == "admitted" and doorway.clients > len(admitted):
            admitted.add(number)
        if step == "gone":
            admitted.discard(number)
        assert pushed not in admitted
        assert doorway.strangers <= 3
        assert doorway.visitors <= 2
        assert doorway.clients == len(admitted)
    for number in seen:
        doorway.gone(number)
    assert (doorway.strangers, doorway.visitors, doorway.clients) == (0, 0, 0)
