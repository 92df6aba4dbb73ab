from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from client.loss import loss_sum, loss_weight, task_loss
from common.tasks import TaskSpec
from tests.client.tiny_family import TASKS

WEIGHTS = {"x": 0.2, "z": 5.0}
WEIGHT = torch.tensor([0.2, 1.0, 5.0])


def classes(loss: object) -> TaskSpec:
    return TaskSpec.model_validate({"name": "topic", "kind": "classification", "labels": ["x", "y", "z"], "loss": loss})


def scores(loss: object) -> TaskSpec:
    return TaskSpec.model_validate({"name": "score", "kind": "regression", "loss": loss, "label_range": [1, 5]})


#: Every loss with options, and what torch makes of it with its mean reduction.
CASES: list[tuple[TaskSpec, Callable[[Tensor, Tensor], Tensor]]] = [
    (classes("cross_entropy"), functional.cross_entropy),
    (
        classes({"class_weights": WEIGHTS, "label_smoothing": 0.1}),
        lambda x, y: functional.cross_entropy(x, y, weight=WEIGHT, label_smoothing=0.1),
    ),
    (
        classes({"kind": "focal", "gamma": 0, "class_weights": WEIGHTS}),
        lambda x, y: functional.cross_entropy(x, y, weight=WEIGHT),
    ),
    (
        classes({"kind": "focal", "gamma": 1.5}),
        lambda x, y: torch.stack(
            [-((1 - p[c]) ** 1.5) * p[c].log() for p, c in zip(x.softmax(1), y, strict=True)]
        ).mean(),
    ),
    (scores("mse"), functional.mse_loss),
    (scores({"kind": "huber", "delta": 0.7}), lambda x, y: functional.huber_loss(x, y, delta=0.7)),
    (scores("cosine"), lambda x, y: functional.mse_loss((x - 1) / 4, (y - 1) / 4)),
]
cases = st.sampled_from(CASES)


def batch(task: TaskSpec, size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if task.kind == "regression":
        return torch.randn(size, generator=generator), 1 + 4 * torch.rand(size, generator=generator)
    return torch.randn(size, 3, generator=generator), torch.randint(3, (size,), generator=generator)


@given(cases, st.integers(1, 9), st.integers(0, 99))
def test_a_loss_and_its_gradient_are_those_of_torchs_mean(
    case: tuple[TaskSpec, Callable[[Tensor, Tensor], Tensor]], size: int, seed: int
) -> None:
    task, expected_of = case
    outputs, labels = batch(task, size, seed)
    ours, theirs = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    loss, expected = task_loss(task, ours, labels), expected_of(theirs, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs))


@given(cases, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_pieces_of_a_batch_add_up_to_the_whole(
    case: tuple[TaskSpec, Callable[[Tensor, Tensor], Tensor]], pieces: list[int], seed: int
) -> None:
    task, _ = case
    outputs, labels = batch(task, sum(pieces), seed)
    outputs.requires_grad_()
    whole = torch.autograd.grad(task_loss(task, outputs, labels), outputs)[0]
    weight = loss_weight(task, labels)
    parts = [
        loss_sum(task, some, these) / weight
        for some, these in zip(torch.split(outputs, pieces), torch.split(labels, pieces), strict=True)
    ]
    torch.testing.assert_close(torch.autograd.grad(torch.stack(parts).sum(), outputs)[0], whole)
    weights = torch.stack([loss_weight(task, these) for these in torch.split(labels, pieces)])
    torch.testing.assert_close(weights.sum(), weight)


@given(cases, st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 99))
def test_a_row_of_weight_n_counts_as_n_equal_rows(
    case: tuple[TaskSpec, Callable[[Tensor, Tensor], Tensor]], counts: list[int], seed: int
) -> None:
    task, _ = case
    outputs, labels = batch(task, len(counts), seed)
    repeats = torch.tensor(counts)
    ours, theirs = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    loss = task_loss(task, ours, labels, repeats.float())
    gradient = torch.autograd.grad(loss, ours)[0]
    if not any(counts):
        assert loss == 0, "rows of no weight at all are no reason for NaN"
        assert not gradient.any()
        return
    expected = task_loss(task, theirs.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, theirs)[0])


def test_losses_are_means_in_float32_on_raw_labels() -> None:
    squared = task_loss(TASKS["score"], torch.tensor([1.0, 5.0], dtype=torch.bfloat16), torch.tensor([0.0, 3.0]))
    assert float(squared) == 2.5
    logits = torch.zeros(2, 2, dtype=torch.bfloat16)
    entropy = task_loss(TASKS["mood"], logits, torch.tensor([0, 1]))
    assert float(entropy) == pytest.approx(0.693147, abs=1e-6)
    assert (squared.dtype, entropy.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_has_a_gradient_where_the_model_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 200.0]], requires_grad=True)
    loss = task_loss(classes({"kind": "focal", "gamma": gamma}), logits, torch.tensor([0, 1]))
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_weights_made_by_an_evaluation_serve_a_training_step() -> None:
    task = classes({"class_weights": {"y": 1.25}})
    outputs, labels = batch(task, 4, 1)
    with torch.inference_mode():
        task_loss(task, outputs, labels)
    outputs.requires_grad_()
    assert torch.autograd.grad(task_loss(task, outputs, labels), outputs)[0].any()


def test_a_column_of_scores_is_refused_instead_of_broadcast() -> None:
    with pytest.raises(ValueError, match="shape"):
        task_loss(TASKS["score"], torch.zeros(3, 1), torch.zeros(3))
