from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.failed_attempts import FailedAttempts, site_of


def test_after_so_many_failures_an_address_waits_for_its_next_attempt() -> None:
    attempts = FailedAttempts(30)
    for _ in range(29):
        attempts.failed("192.0.2.1", 100.0)
    assert attempts.wait_s("192.0.2.1", 100.0) == 0
    attempts.failed("192.0.2.1", 100.0)
    assert attempts.wait_s("192.0.2.1", 100.0) == 2  # 30 in a minute: one in two seconds
    assert attempts.wait_s("192.0.2.2", 100.0) == 0
    assert attempts.wait_s("192.0.2.1", 102.1) == 0
    attempts.failed("192.0.2.1", 102.1)
    assert attempts.wait_s("192.0.2.1", 102.1) > 0


def test_an_address_that_never_stops_is_heard_again_soon_after_it_does() -> None:
    attempts = FailedAttempts(6)
    for _ in range(10_000):
        attempts.failed("192.0.2.1", 5.0)
    assert attempts.wait_s("192.0.2.1", 5.0) <= 20


def test_the_table_does_not_grow_with_the_addresses_of_an_attacker() -> None:
    attempts = FailedAttempts(1, addresses=100)
    for number in range(10_000):
        attempts.failed(f"10.0.{number // 256}.{number % 256}", float(number) / 1000)
    assert len(attempts) == 100
    assert attempts.wait_s("10.0.39.15", 10.0) > 0  # the last one is remembered


def test_what_has_run_out_takes_no_memory() -> None:
    attempts = FailedAttempts(2)
    attempts.failed("192.0.2.1", 0.0)
    assert attempts.wait_s("192.0.2.1", 100.0) == 0
    assert len(attempts) == 0


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a socket file", "a socket file"),
    ],
)
def test_what_an_address_counts_as(address: str, site: str) -> None:
    assert site_of(address) == site


@given(st.integers(1, 50), st.lists(st.floats(0, 30), min_size=1, max_size=400))
def test_nobody_who_asks_first_fails_much_more_often_than_allowed(per_minute: int, pauses: list[float]) -> None:
    attempts, now, failures = FailedAttempts(per_minute), 0.0, []
    for pause in pauses:
        now += pause
        if not attempts.wait_s("a", now):
            attempts.failed("a", now)
            failures.append(now)
    for start in failures:
        # The bucket holds a minute's worth and fills again in a minute.
        assert sum(start <= moment < start + 60 for moment in failures) <= 2 * per_minute + 1
