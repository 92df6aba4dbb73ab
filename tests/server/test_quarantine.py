"""Who is left out for a while: strikes are rounds, a sentence is a number of versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.quarantine import BAD_UPDATES, QuarantineList


def test_so_many_rounds_with_a_bad_update_and_not_so_many_updates() -> None:
    listed = QuarantineList(after=3, rounds=2)
    assert [listed.strike("x", number, "non_finite") for number in (1, 1, 1, 2, 2)] == [0] * 5
    assert not listed.holds("x", 2)
    assert listed.strike("x", 7, "wrong_shape") == 9
    assert listed.until("x") == 9


def test_it_lasts_for_so_many_versions_beyond_the_round_it_began_in() -> None:
    listed = QuarantineList(after=1, rounds=2)
    assert listed.strike("x", 5, "checksum") == 7
    assert [version for version in range(4, 10) if listed.holds("x", version)] == [4, 5, 6]


def test_clients_are_judged_each_for_itself() -> None:
    listed = QuarantineList(after=2, rounds=1)
    listed.strike("x", 1, "checksum")
    assert listed.strike("y", 2, "checksum") == 0
    assert listed.strike("x", 2, "checksum") == 3
    assert not listed.holds("y", 2)
    assert listed.until("y") == listed.until("nobody") == 0


def test_after_its_time_a_client_starts_afresh() -> None:
    listed = QuarantineList(after=2, rounds=1)
    listed.strike("x", 1, "checksum")
    listed.strike("x", 2, "checksum")
    assert listed.strike("x", 4, "checksum") == 0
    assert listed.strike("x", 5, "checksum") == 6


@pytest.mark.parametrize(
    "code", ["stale_round", "not_asked", "internal", "quarantined", "future_round", "stale_version"]
)
def test_bad_luck_is_no_strike(code: str) -> None:
    listed = QuarantineList(after=1)
    assert listed.strike("x", 1, code) == 0
    assert not listed.holds("x", 1)


def test_nobody_is_left_out_when_it_is_off() -> None:
    listed = QuarantineList(after=0)
    assert {listed.strike("x", number, code) for number in range(20) for code in BAD_UPDATES} == {0}


def test_a_release_wipes_the_slate() -> None:
    listed = QuarantineList(after=2, rounds=5)
    for number in (1, 2, 3):
        listed.strike("x", number, "checksum")
    assert listed.holds("x", 3)
    listed.release("x")
    assert not listed.holds("x", 3)
    assert listed.strike("x", 4, "checksum") == 0, "the third strike is forgotten too"
    listed.release("nobody")


def test_it_goes_on_from_a_history() -> None:
    listed = QuarantineList(after=2, rounds=1)
    listed.restore([("x", 3), ("x", 3), ("y", 1)], [("z", 5), ("released", 0)])
    assert listed.holds("z", 4)
    assert not listed.holds("z", 5)
    assert listed.until("released") == 0
    assert listed.strike("x", 4, "checksum") == 5
    assert listed.strike("w", 4, "checksum") == 0


strikes = st.sets(st.tuples(st.integers(1, 9), st.sampled_from("xy")), max_size=18)


@given(strikes, st.integers(0, 9), st.integers(1, 4), st.integers(1, 3))
def test_a_restart_changes_no_sentence(history: set[tuple[int, str]], cut: int, after: int, rounds: int) -> None:
    """Restored as the server does it: the sentences, and the strikes of rounds after each client's last one."""
    before = [(number, client_id) for number, client_id in sorted(history) if number <= cut]
    whole, again = QuarantineList(after, rounds), QuarantineList(after, rounds)
    sentences: dict[str, tuple[int, int]] = {}
    for number, client_id in before:
        if until := whole.strike(client_id, number, "checksum"):
            sentences[client_id] = (number, until)
    again.restore(
        [(client_id, number) for number, client_id in before if number > sentences.get(client_id, (0, 0))[0]],
        [(client_id, until) for client_id, (_, until) in sentences.items()],
    )
    for number, client_id in sorted(history)[len(before) :]:
        assert again.holds(client_id, number) == whole.holds(client_id, number)
        assert again.strike(client_id, number, "checksum") == whole.strike(client_id, number, "checksum")
