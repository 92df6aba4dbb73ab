"""Small families over tabular rows, and batches for them, that the tests of single families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.families import build_family
from common.families.base import Family, MultiTaskModel
from common.tasks import TaskSpec, load_registry
from tests.common.families.tiny import config

TASKS: dict[str, TaskSpec] = load_registry(
    {
        "a": {"kind": "classification", "label": "a", "labels": ["no", "yes"]},
        "b": {"kind": "classification", "label": "b", "labels": ["x", "y", "z"]},
        "c": {"kind": "regression", "label": "c"},
    },
    "tabular.py",
)

#: Two numeric columns, and so four inputs with the indicators of missing values.
INPUTS: dict[str, object] = {"numeric": {"one": {}, "two": {}}, "tower": [4]}
WIDTH = 4


def tabular(family: str, tasks: Mapping[str, TaskSpec] = TASKS, /, **settings: object) -> Family:
    """A family over two columns, with other settings than the defaults."""
    return build_family(config(**{**INPUTS, "family": family, **settings}), tasks, base_dir=Path())


def loaded(family: Family, tasks: Sequence[str] = tuple(TASKS), seed: int = 1) -> MultiTaskModel:
    """A model for some tasks with the first values of a seed, in training mode."""
    model = family.build(tasks)
    values = family.initial_values(seed)
    model.load_state_dict({name: values[name] for name in model.state_dict()})
    return model.train()


def batch(rows: int = 6, seed: int = 1) -> dict[str, Tensor]:
    """Rows of random numbers."""
    return {"features": torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))}


def outputs(model: MultiTaskModel, tasks: Sequence[str] = tuple(TASKS), rows: int = 6) -> dict[str, Tensor]:
    """What each task's forward pass gives for the same rows."""
    with torch.no_grad():
        return {task: model(task, batch(rows)) for task in tasks}
