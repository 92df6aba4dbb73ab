"""Which updates of a round are out of proportion."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.screening import norm_outliers

NORMS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0, 1e6), max_size=9)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1, 1, 11], {"c2": 11}),
        ([1, 1, 10], {}),  # exceeds, not reaches
        ([1, 50], {}),  # of two nobody knows
        ([50], {}),
        ([], {}),
        ([1, 1, 40, 50], {"c2": 40, "c3": 50}),  # half of them can't hide behind each other
        ([0, 0, 0, 50], {}),  # nothing to compare with
        ([0, 0, 0, 1, 2, 50], {"c5": 25}),
        ([0, 0, 0, 0], {}),
        ([1, 2, math.inf], {"c2": math.inf}),
        ([1, math.inf, math.inf], {}),
    ],
)
def test_who_is_out_of_proportion(norms: list[float], expected: dict[str, float]) -> None:
    assert norm_outliers({f"c{k}": norm for k, norm in enumerate(norms)}, 10) == expected


@given(NORMS, st.floats(1, 100), st.integers(-20, 20))
def test_the_unit_does_not_matter_and_fewer_than_half_are_named(
    norms: dict[str, float], ratio: float, power: int
) -> None:
    found = norm_outliers(norms, ratio)
    assert list(found) == sorted(found)
    assert all(value > 1 for value in found.values())
    assert 2 * len(found) <= len(norms)
    large = {client_id: norm for client_id, norm in norms.items() if not 0 < norm < 1e-200}
    scaled = {client_id: norm * 2.0**power for client_id, norm in large.items()}
    assert norm_outliers(scaled, ratio) == norm_outliers(large, ratio)


@pytest.mark.parametrize(
    ("norms", "ratio"), [({"a": 1.0}, 0.9), ({"a": 1.0}, math.nan), ({"a": -1.0}, 2), ({"a": math.nan}, 2)]
)
def test_what_makes_no_sense_is_refused(norms: dict[str, float], ratio: float) -> None:
    with pytest.raises(ValueError, match="at least"):
        norm_outliers(norms, ratio)
