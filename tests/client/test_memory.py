"""What a client remembers: by round, so that a round done again starts where it started the first time."""

from __future__ import annotations

import torch

from client.memory import ClientMemory, Memory, resident, residents
from common.blueprint import ParameterSpec
from common.plan import Slot

USERS = frozenset({"a", "b"})
SPEC = ParameterSpec("norm.weight", (1,), "float32", USERS, USERS, "layer.0")
BOTH = Slot(SPEC, USERS, "client")
ONLY_A = Slot(SPEC, frozenset({"a"}), "client")
ONLY_B = Slot(SPEC, frozenset({"b"}), "client")
ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])


def test_nothing_is_known_before_the_first_round() -> None:
    memory = ClientMemory()
    assert memory.latest() == Memory()
    assert memory.before(1) == Memory()
    assert resident(Memory(), BOTH, USERS) is None


def test_a_round_done_again_starts_from_what_was_known_before_it() -> None:
    memory = ClientMemory()
    first, second, again = (Memory(numbers={"x": value}) for value in (1.0, 2.0, 3.0))
    memory.keep(1, first)
    memory.keep(2, second)
    assert memory.before(3) is memory.latest() is second
    assert memory.before(2) is first
    memory.keep(2, again)
    assert memory.before(2) is first
    assert memory.latest() is again
    memory.keep(1, first)
    assert memory.latest() is first
    assert memory.before(1) == Memory()


def test_a_round_that_was_not_counted_has_not_happened() -> None:
    memory = ClientMemory()
    first, lost, third = (Memory(numbers={"x": value}) for value in (1.0, 2.0, 3.0))
    memory.keep(1, first, 0)
    memory.keep(2, lost, 1)
    assert memory.before(3, 2) is lost
    assert memory.before(3, 1) is first
    assert memory.before(3, 0) == Memory(), "the server counts none at all"
    memory.keep(3, third, 1)
    assert memory.before(3, 1) is first, "also when it is done again"
    assert memory.before(4, 3) is third
    assert memory.before(4, 1) is first


def test_a_resident_slot_is_found_by_any_of_its_tasks_when_the_plan_changes() -> None:
    joint = Memory(residents({BOTH: ONE}))
    assert resident(joint, ONLY_A, USERS) is ONE
    assert resident(joint, ONLY_B, USERS) is ONE
    split = Memory(residents({ONLY_A: TWO, ONLY_B: ONE}))
    assert resident(split, BOTH, USERS) is TWO
    assert resident(split, BOTH, frozenset({"b"})) is ONE
    assert resident(split, ONLY_A, frozenset({"b"})) is None
