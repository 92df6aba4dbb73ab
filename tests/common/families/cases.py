"""One tiny configuration of every family over tabular rows, for tests that hold of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.families import build_family
from common.families.base import Family, MultiTaskModel
from common.tasks import TaskSpec, load_registry
from tests.common.families.tiny import config

TASKS: dict[str, TaskSpec] = load_registry(
    {
        "one": {"kind": "classification", "label": "y1", "labels": ["no", "yes"]},
        "two": {"kind": "regression", "label": "y2"},
        "three": {"kind": "classification", "label": "y3", "labels": ["a", "b", "c"]},
    },
    "cases.py",
)

#: Input columns: ten inputs.
INPUTS: dict[str, Any] = {"numeric": {"a": {}, "b": {}, "c": {}}, "categorical": {"d": ["x", "y", "z"]}, "tower": [4]}

_LEVEL = {"shared": {"number": 2, "hidden": [5]}, "own": {"number": 2, "hidden": [5]}}

#: Name of a case to the `model:` section without the input columns. A case may show options of its family.
CASES: dict[str, dict[str, Any]] = {
    "single_task": {"family": "single_task", "column": [6, 5]},
    "shared_bottom": {"family": "shared_bottom", "bottom": [6, 5]},
    "omoe": {"family": "omoe", "experts": {"number": 3, "hidden": [6, 5]}},
    "mmoe": {"family": "mmoe", "experts": {"number": 3, "hidden": [6, 5]}, "gate": {"bias": True}},
    "mmoe sparse": {"family": "mmoe", "experts": {"number": 4, "hidden": [5]}, "gate": {"top_k": 2, "noise": True}},
    "ple of one level": {"family": "ple", "levels": [_LEVEL]},
    "ple of two levels": {"family": "ple", "levels": [{**_LEVEL, "own": {"number": 1, "hidden": [3, 5]}}, _LEVEL]},
    "ple of three levels": {"family": "ple", "levels": [_LEVEL, _LEVEL, _LEVEL]},
    "ple with own experts at the end": {
        "family": "ple",
        "levels": [{**_LEVEL, "own": {"number": 0}}, {**_LEVEL, "own": {"number": 0}}, _LEVEL],
    },
}


def tabular(tasks: Mapping[str, TaskSpec] = TASKS, **settings: Any) -> Family:  # noqa: ANN401  # a model's section
    """The family of a `model:` section, with the input columns of `INPUTS`."""
    return build_family(config(**{**INPUTS, **settings}), tasks, base_dir=Path())


def drawn(family: Family, *tasks: str, seed: int = 1) -> MultiTaskModel:
    """A model for some of the tasks (all, when none is named) in evaluation mode, with the family's first values."""
    model = family.build(tasks or list(family.tasks))
    values = family.initial_values(seed)
    model.load_state_dict({name: values[name] for name in model.state_dict()})
    return model.eval()


def rows(count: int = 12, seed: int = 0, width: int = 10) -> dict[str, Tensor]:
    """A batch of random inputs, more alive than rows of a table: every input of a row is a number."""
    return {"features": torch.randn(count, width, generator=torch.Generator().manual_seed(seed))}
