"""Tied slots: the steps against their definition, and what they move in a version."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import ConfigError
from common.families.soft_sharing import apartness
from common.families.ties import TieKind
from common.plan import SharingPlan
from server.coupling import Couple, check_ties, coupling, nearer
from server.model_state import ModelState
from server.strategy import initial_plan
from tests.common.families.tabular import TASKS, tabular

FAMILY = tabular("soft_sharing", column=[5, 3])
PLAN = SharingPlan.shared(FAMILY.blueprint())
FIRST = FAMILY.initial_values(1)
VALUES = {slot.id: FIRST[slot.parameter] for slot in PLAN.slots}
KINDS: tuple[TieKind, ...] = ("l2", "trace_norm")


def matrix(rows: int = 7, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KINDS), st.floats(1e-3, 3.0), st.integers(0, 1000))
def test_no_other_matrix_has_less_of_distance_and_penalty(kind: TieKind, step: float, seed: int) -> None:
    before = matrix(seed=seed)

    def cost(v: Tensor) -> float:
        return ((v - before).square().sum() / 2 + step * apartness(list(v.T), kind)).item()

    found = nearer(before, kind, step)
    least = cost(found)
    assert least <= cost(before) + 1e-9
    for scale in (1e-1, 1e-3):
        for other in range(4):
            assert least <= cost(found + scale * matrix(seed=seed + other + 1)) + 1e-9


def test_l2_keeps_the_mean_and_a_long_step_ends_there() -> None:
    before = matrix()
    mean = before.mean(1, keepdim=True).expand_as(before)
    torch.testing.assert_close(nearer(before, "l2", 0.5).mean(1), before.mean(1))
    torch.testing.assert_close(nearer(before, "l2", 1e12), mean)


def test_trace_norm_takes_the_step_off_every_singular_value() -> None:
    before = matrix()
    values = torch.linalg.svdvals(before)
    step = float(values[1] + values[2]) / 2
    after = torch.linalg.svdvals(nearer(before, "trace_norm", step))
    torch.testing.assert_close(after, (values - step).clamp_min(0), atol=1e-9, rtol=1e-9)
    assert int((after > 1e-9).sum()) == 2, "a rank less"


def test_copies_without_any_difference_or_value_stay() -> None:
    torch.testing.assert_close(nearer(torch.ones(4, 3, dtype=torch.float64), "l2", 1.0), torch.ones(4, 3).double())
    assert not nearer(torch.zeros(4, 3, dtype=torch.float64), "trace_norm", 1.0).any()


def tied(kind: TieKind = "l2", round_step: float = 1.0) -> Couple:
    coupled = {"kind": kind, "strength": 0.5, "round_step": round_step}
    couple = coupling(tabular("soft_sharing", column=[5, 3], coupling=coupled).ties())
    assert couple is not None
    return couple


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_of_all_tasks_move_layer_by_layer_and_towers_do_not(kind: TieKind) -> None:
    found = tied(kind, round_step=0.2)(PLAN, VALUES)
    assert found.keys() == {slot.id for slot in PLAN.slots if slot.parameter.startswith("columns.")}
    copies = torch.stack([FIRST[f"columns.{task}.layers.1.weight"].flatten() for task in TASKS], dim=1)
    wanted = nearer(copies.double(), kind, 0.5 * 0.2).float()
    for place, task in enumerate(TASKS):
        value = found[f"columns.{task}.layers.1.weight@{task}"]
        assert value.shape == (3, 5)
        torch.testing.assert_close(value.flatten(), wanted[:, place])


def test_a_frozen_column_stays_and_still_pulls() -> None:
    frozen = PLAN.freeze(slot.id for slot in PLAN.slots if slot.tasks == {"a"})
    found, free = tied()(frozen, VALUES), tied()(PLAN, VALUES)
    assert not any("@a" in slot_id for slot_id in found)
    assert all(torch.equal(found[slot_id], free[slot_id]) for slot_id in found)


def test_strength_zero_and_a_single_task_tie_nothing() -> None:
    assert coupling(tabular("soft_sharing", coupling={"strength": 0}).ties()) is None
    assert coupling(tabular("soft_sharing", {"a": TASKS["a"]}).ties()) is None
    assert coupling(tabular("single_task").ties()) is None


def test_a_version_is_settled_once_all_slots_have_moved() -> None:
    model, couple = ModelState.initial(PLAN, FIRST), tied()
    raised = {slot_id: value + 1.0 for slot_id, value in VALUES.items()}
    model.advance(lambda slot, _: raised[slot.id], None, partial(couple, PLAN))
    wanted = {**raised, **couple(PLAN, raised)}
    assert model.version == 1
    assert all(torch.equal(model.values[slot_id], value) for slot_id, value in wanted.items())


def test_columns_that_live_on_clients_are_refused() -> None:
    family = tabular("soft_sharing")
    plan = initial_plan("mtl", family.blueprint(), ["columns.*"])
    with pytest.raises(ConfigError, match=r"my\.yaml: federation\.resident: columns\.a\.layers\.0\.weight"):
        check_ties(family.ties(), plan, "my.yaml")
    check_ties(family.ties(), initial_plan("mtl", family.blueprint(), ["heads"]), "my.yaml")
