"""A gate for each task."""

from __future__ import annotations

import pytest
import torch

from tests.common.families.tabular import TASKS, batch, loaded, outputs, tabular

EXPERTS = {"number": 3, "hidden": [5]}


@pytest.mark.parametrize("gate", [{}, {"bias": True}, {"top_k": 2}])
def test_with_equal_gates_the_outputs_are_those_of_omoe(gate: dict[str, object]) -> None:
    one = loaded(tabular("omoe", experts=EXPERTS, gate=gate))
    model = loaded(tabular("mmoe", experts=EXPERTS, gate=gate))
    tied = {f"gate.{task}.{name}": value for task in TASKS for name, value in one.gate.state_dict().items()}  # type: ignore[union-attr]
    model.load_state_dict(tied, strict=False)
    for task, found in outputs(model).items():
        torch.testing.assert_close(found, outputs(one)[task], rtol=0, atol=1e-6)


def test_gates_differ_unless_they_are_tied() -> None:
    model = loaded(tabular("mmoe", experts=EXPERTS))
    found = model.training_pass(dict.fromkeys(TASKS, slice(0, 6)), batch())
    assert not torch.allclose(found.gates["a"]["a"].mass, found.gates["b"]["b"].mass)
    weights = torch.softmax(batch()["features"] @ dict(model.named_parameters())["gate.a.weight"].T, dim=1)
    torch.testing.assert_close(found.gates["a"]["a"].mass, weights.sum(0))
    torch.testing.assert_close(found.gates["a"]["a"].entropy, -(weights * weights.log()).sum())


@pytest.mark.parametrize("levels", [1, 2])
def test_a_pass_in_pieces_of_single_tasks_pays_for_balance_as_a_whole_does(levels: int) -> None:
    """A penalty is a mean over the rows of the pass, the step's mean is over all (`client.micro_batches`)."""
    own = {"shared": EXPERTS, "own": {"number": 1, "hidden": [5]}}
    section = {"experts": EXPERTS} if levels == 1 else {"levels": [own] * 2}
    family = tabular("mmoe" if levels == 1 else "ple", **section, gate={"balance": 1.0})
    model = loaded(family)
    places = {"a": slice(0, 4), "b": slice(4, 6)}
    together = model.training_pass(places, batch()).penalty
    alone = {task: model.training_pass({task: rows}, batch()).penalty for task, rows in places.items()}
    assert together is not None
    assert alone["a"] is not None
    assert alone["b"] is not None
    assert together.item() == pytest.approx((4 * alone["a"].item() + 2 * alone["b"].item()) / 6)
    same = model.training_pass({"a": slice(0, 4), "b": slice(0, 4)}, batch()).penalty
    other = model.training_pass({"b": slice(0, 4)}, batch()).penalty
    assert same is not None
    assert other is not None
    assert same.item() == pytest.approx((alone["a"].item() + other.item()) / 2)
    assert loaded(family).eval().training_pass({"a": slice(0, 6)}, batch()).penalty is None
