from __future__ import annotations

import torch

from client.residents import Residents
from common.blueprint import ParameterSpec
from common.plan import Slot

USERS = frozenset({"a", "b"})
SPEC = ParameterSpec("norm", (2,), "float32", USERS, USERS, "layer.0")
BOTH, ONLY_A, ONLY_B = (Slot(SPEC, frozenset(tasks), "client") for tasks in ("ab", "a", "b"))
ZERO, ONE, TWO = (torch.full((2,), float(number)) for number in range(3))


def test_nothing_is_found_before_the_first_round() -> None:
    assert Residents().find(BOTH, USERS) is None


def test_a_split_goes_on_from_the_common_value_and_a_merge_from_the_first_task() -> None:
    residents = Residents()
    residents.keep(1, {BOTH: ONE}, {BOTH: ZERO})
    assert residents.find(ONLY_A, USERS) is ONE
    assert residents.find(ONLY_B, USERS) is ONE
    residents.keep(2, {ONLY_A: TWO, ONLY_B: ZERO}, {ONLY_A: ONE, ONLY_B: ONE})
    assert residents.find(BOTH, USERS) is TWO


def test_a_round_done_again_starts_from_before_it() -> None:
    residents = Residents()
    residents.keep(1, {BOTH: ONE}, {BOTH: ZERO})
    residents.keep(2, {BOTH: TWO}, {BOTH: ONE})
    assert residents.find(BOTH, USERS, redo=3) is TWO
    assert residents.find(BOTH, USERS, redo=2) is ONE
    residents.keep(2, {BOTH: TWO}, {BOTH: ONE})
    assert residents.find(BOTH, USERS, redo=2) is ONE
