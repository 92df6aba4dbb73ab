from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.byte_budget import ByteBudget, Claim


def nothing() -> None:
    pass


def test_what_does_not_fit_waits_its_turn_even_if_something_smaller_would_fit() -> None:
    budget, granted = ByteBudget(100), []
    first = budget.claim(80, nothing)
    large = budget.claim(60, lambda: granted.append("large"))
    small = budget.claim(10, lambda: granted.append("small"))
    assert (first.granted, large.granted, small.granted) == (True, False, False)
    budget.give_back(first)
    assert granted == ["large", "small"]
    assert budget.held == 70


def test_one_that_is_larger_than_everything_is_alone_but_not_locked_out() -> None:
    budget = ByteBudget(100)
    first, giant = budget.claim(10, nothing), budget.claim(500, nothing)
    assert not giant.granted
    budget.give_back(first)
    assert giant.granted
    assert not budget.claim(1, nothing).granted


def test_one_that_no_longer_waits_does_not_hold_up_those_behind_it() -> None:
    budget = ByteBudget(100)
    budget.claim(60, nothing)
    gone, behind = budget.claim(60, nothing), budget.claim(40, nothing)
    budget.give_back(gone)
    assert behind.granted
    assert not gone.granted


@given(st.lists(st.integers(-5, 120), max_size=60))
def test_never_too_much_is_held_and_in_the_end_everybody_was_served(steps: list[int]) -> None:
    """A positive number claims so many bytes, another gives back one of the claims, by position."""
    budget, claims, served = ByteBudget(100), list[Claim](), list[int]()
    for position, step in enumerate(steps):
        if step > 0:
            claim = budget.claim(step, lambda position=position: served.append(position))  # type: ignore[misc]
            if claim.granted:
                served.append(position)
            claims.append(claim)
        elif claims:
            held = [claim for claim in claims if claim.granted]
            if held:
                budget.give_back(held[step % len(held)])
        sizes = [claim.size for claim in claims if claim.granted]
        assert budget.held == sum(sizes)
        assert budget.held <= 100 or len(sizes) == 1
    while any(claim.granted for claim in claims):
        budget.give_back(next(claim for claim in claims if claim.granted))
    assert served == sorted(served)
    assert len(served) == len(claims)
    assert (budget.held, budget.waiting) == (0, 0)
