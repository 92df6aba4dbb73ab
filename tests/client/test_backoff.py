"""When to try again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.backoff import ATTEMPT_S, FIRST_S, LONGEST_S, Backoff


@given(st.floats(1.0, 1e6), st.floats(0, 1e9))
def test_delays_grow_up_to_a_limit_and_end_with_patience(patience_s: float, start: float) -> None:
    backoff, now, ceiling = Backoff(patience_s), start, FIRST_S
    for _ in range(200):
        delay = backoff.next(now)
        if delay is None:
            assert now >= start + patience_s - 1e-6
            return
        assert 0 < delay <= ceiling
        assert now + delay <= start + patience_s + 1e-6
        assert delay >= ceiling / 2 or now + delay >= start + patience_s - 1e-6
        now, ceiling = now + delay, min(LONGEST_S, 2 * ceiling)


def test_days_of_trying_do_not_overflow() -> None:
    backoff = Backoff(1e9)
    delays = [backoff.next(0.0) for _ in range(5000)]
    assert all(delay is not None and LONGEST_S / 2 <= delay <= LONGEST_S for delay in delays[10:])


def test_a_good_connection_gives_patience_anew() -> None:
    backoff = Backoff(10.0)
    assert backoff.next(0.0) is not None
    assert backoff.next(10.0) is None
    backoff.reset()
    delay = backoff.next(100.0)
    assert delay is not None
    assert delay <= FIRST_S
    assert backoff.next(109.0) is not None
    assert backoff.next(110.0) is None


def test_time_asleep_is_not_time_of_trying() -> None:
    """A laptop that sleeps for hours between two attempts still has its patience when it wakes."""
    backoff = Backoff(100.0)
    assert backoff.next(0.0) is not None
    assert backoff.next(50_000.0) is not None
    assert backoff.next(50_000.0 + 100 - ATTEMPT_S - 1) is not None
    assert [backoff.next(60_000.0 + 10_000 * hour) for hour in range(4)][-1] is None


def test_without_patience_there_is_no_second_try() -> None:
    assert Backoff(0.0).next(5.0) is None


def test_clients_do_not_come_back_at_the_same_instant() -> None:
    assert len({Backoff(100.0).next(0.0) for _ in range(20)}) > 1
