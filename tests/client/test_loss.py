from __future__ import annotations

import pytest
import torch

from client.loss import task_loss
from tests.client.tiny_family import TASKS


def test_losses_are_means_in_float32_on_raw_labels() -> None:
    squared = task_loss(TASKS["score"], torch.tensor([1.0, 5.0], dtype=torch.bfloat16), torch.tensor([0.0, 3.0]))
    assert float(squared) == 2.5
    logits = torch.zeros(2, 2, dtype=torch.bfloat16)
    entropy = task_loss(TASKS["mood"], logits, torch.tensor([0, 1]))
    assert float(entropy) == pytest.approx(0.693147, abs=1e-6)
    assert (squared.dtype, entropy.dtype) == (torch.float32, torch.float32)


def test_a_column_of_scores_is_refused_instead_of_broadcast() -> None:
    with pytest.raises(ValueError, match="shape"):
        task_loss(TASKS["score"], torch.zeros(3, 1), torch.zeros(3))
