"""The families that are compared on synthetic tasks are of comparable size, and read the rows as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.data.examples import Examples
from common.errors import ConfigError
from common.families.tabular_family import MODELS
from experiments.synthetic_family import TASKS, known_families, synthetic_family


def test_every_tabular_family_can_be_compared() -> None:
    assert set(known_families()) == set(MODELS)


@pytest.mark.parametrize("name", known_families())
def test_no_family_has_an_advantage_by_size(name: str) -> None:
    summary = synthetic_family(name, 100).summary()
    assert 12_000 <= summary.total_parameters <= 15_000


def test_the_sizes_are_the_papers() -> None:
    experts = {p.name: p.shape for p in synthetic_family("mmoe", 100).blueprint().parameters}
    assert sum(name.startswith("experts.") and name.endswith("weight") for name in experts) == 8
    assert experts["experts.0.layers.0.weight"] == (16, 100)
    bottom = {p.name: p.shape for p in synthetic_family("shared_bottom", 100).blueprint().parameters}
    assert bottom["encoder.layers.0.weight"] == (113, 100)


def test_rows_enter_as_they_are() -> None:
    values = np.random.default_rng(1).standard_normal((6, 3))
    columns = {f"x{i}": values[:, i] for i in range(3)}
    rows = Examples(TASKS[0], "train", columns, np.zeros(6, dtype=np.float32), np.arange(1, 7), "synthetic")
    features = synthetic_family("mmoe", 3).encode(TASKS[0], rows).collate(np.arange(6))["features"]
    assert torch.equal(features, torch.from_numpy(values.astype(np.float32)))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'mmmoe'.*allowed: single_task, shared_bottom"):
        synthetic_family("mmmoe", 3)
