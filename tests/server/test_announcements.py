from __future__ import annotations

from server.announcements import Announcements


def test_a_client_announces_so_many_updates_in_a_round_and_no_more() -> None:
    made = Announcements(2)
    assert [made.take("a", 1), made.take("a", 1), made.take("a", 1)] == [True, True, False]
    assert made.take("b", 1)
    assert made.take("a", 2)


def test_what_was_cut_off_does_not_count() -> None:
    made = Announcements(1)
    for _ in range(20):
        assert made.take("a", 1)
        made.forgive("a")
    made.forgive("a")
    assert [made.take("a", 1), made.take("a", 1)] == [True, False]
