from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from client.failures import TrainingDiverged
from client.surgery import Surgery, combined, inner_products, weighting
from common.training import SurgeryMethod, TrainSettings

METHODS = [method for method in get_args(SurgeryMethod) if method != "none"]


def surgery(method: str) -> Surgery:
    return Surgery(TrainSettings.model_validate({"mixed_batches": True, "surgery": method}))


def gradients(*rows: list[float]) -> list[dict[str, Tensor]]:
    """One task per row: its gradient of a shared slot in two pieces, and of its own head."""
    return [
        {"w": torch.tensor(row[:2]), "b": torch.tensor(row[2:]), f"head{place}": torch.tensor([7.0])}
        for place, row in enumerate(rows)
    ]


def shared_part(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found["w"], found["b"]])


AGREEING = ([1.0, 2.0, 0.0], [3.0, -1.0, 1.0])
#: Inner product -2, norms 5 and 2.
OPPOSED = ([1.0, 2.0, 0.0], [0.0, -1.0, 1.0])


def test_gradients_that_agree_are_summed_by_pcgrad() -> None:
    found = combined(gradients(*AGREEING), surgery("pcgrad"))
    torch.testing.assert_close(shared_part(found), torch.tensor([4.0, 1.0, 1.0]))


@pytest.mark.parametrize(("method", "share"), [("pcgrad", 1.0), ("upgrad", 0.5)])
def test_a_conflict_is_projected_away_as_by_hand(method: str, share: float) -> None:
    """Each gradient loses its part along the other: g1 - (g1.g2 / g2.g2) g2, and the other way round."""
    one, two = (torch.tensor(row) for row in OPPOSED)
    projected = (one + 2 / 2 * two) + (two + 2 / 5 * one)
    found = combined(gradients(*OPPOSED), surgery(method))
    torch.testing.assert_close(shared_part(found), share * projected)
    assert float(shared_part(found) @ one) > 0
    assert float(shared_part(found) @ two) > 0


def test_mgda_finds_the_shortest_mean() -> None:
    """Of gradients of lengths 1 and 2 at right angles: weights in inverse proportion to their squares."""
    found = combined(gradients([1.0, 0.0, 0.0], [0.0, 2.0, 0.0]), surgery("mgda"))
    torch.testing.assert_close(shared_part(found), torch.tensor([0.8, 0.4, 0.0]), rtol=1e-3, atol=1e-3)


def test_aligned_mtl_gives_gradients_the_size_of_the_smallest() -> None:
    found = combined(gradients([1.0, 0.0, 0.0], [0.0, 2.0, 0.0]), surgery("aligned_mtl"))
    torch.testing.assert_close(shared_part(found), torch.tensor([0.5, 0.5, 0.0]))


def test_cagrad_without_room_is_the_mean() -> None:
    settings = TrainSettings(mixed_batches=True, surgery="cagrad", cagrad_c=0.0)
    found = combined(gradients(*OPPOSED), Surgery(settings))
    torch.testing.assert_close(shared_part(found), torch.tensor([0.5, 0.5, 0.5]))


@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_heads_keep_their_own_gradient(method: str) -> None:
    found = combined(gradients(*OPPOSED), None if method == "none" else surgery(method))
    assert found["head0"].tolist() == found["head1"].tolist() == [7.0]
    if method == "none":
        assert shared_part(found).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("method", METHODS)
def test_tasks_that_share_nothing_are_left_alone(method: str) -> None:
    found = combined([{"a": torch.ones(2)}, {"b": -torch.ones(2)}], surgery(method))
    assert found["a"].tolist() == [1, 1]
    assert found["b"].tolist() == [-1, -1]


def test_a_slot_that_only_some_tasks_share_counts_for_them_only() -> None:
    found = combined(
        [{"x": torch.ones(1), "y": torch.ones(1)}, {"x": torch.ones(1), "y": torch.ones(1)}, {"y": -torch.ones(1)}],
        None,
    )
    assert (found["x"].item(), found["y"].item()) == (2, 1)
    products = inner_products([{"x": torch.ones(2)}, {"y": torch.ones(2)}, {"x": 2 * torch.ones(2)}], ["x", "y"])
    assert products.tolist() == [[2, 0, 4], [0, 2, 0], [4, 0, 8]]


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_is_told(method: str) -> None:
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        combined(gradients([1.0, 0.0, 0.0], [float("nan"), 0.0, 0.0]), surgery(method))


def test_none_is_no_method() -> None:
    with pytest.raises(ValueError, match="none"):
        weighting("none")
