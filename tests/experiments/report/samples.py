"""Small result files of every kind, as the experiments' commands write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: What a user could name a column's value, a task or a data set, to see whether it is shown or obeyed.
HOSTILE = "</script><script>document.title='taken'</script><b>&"


def point(number: int, *, unit: str = "epoch", mmoe: bool = True) -> dict[str, Any]:
    """The state after an epoch, of two tasks whose gates part company."""
    shift = 0.05 * number
    gates = {
        "income": {"income": {"load": [0.5 + shift, 0.5 - shift], "entropy": 0.69 - shift}},
        "marital": {"marital": {"load": [0.5 - shift, 0.5 + shift], "entropy": 0.6}},
    }
    tasks = {"income": {"auc": 0.9 + shift / 10, "loss": 0.3}, "marital": {"auc": 0.98, "loss": 0.1}}
    return {unit: number, "tasks": tasks, "gates": gates if mmoe else {}}


def train(model: str = "mmoe", seed: int = 0, income: float = 0.94, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A training run on the census."""
    result: dict[str, Any] = {
        "kind": "train", "model": model, "dataset": "census-kdd", "seed": seed, "epochs": 3, "parameters": 1000,
        "seconds": 2.0, "examples_per_second": 1e5, "federated": None, "partition": None, "settings": {},
        "test": {"income": {"auc": income}, "marital": {"auc": 0.99}},
        "history": [point(n, mmoe=model == "mmoe") for n in (1, 2, 3)],
    }  # fmt: skip
    return {**result, **changes}


def specialisation(value: str = "Never married") -> dict[str, Any]:
    """One gate's experts, the second with no list."""
    top = [{"column": "status", "value": value, "lift": 1.8, "share": 0.4, "rows": 400}]
    experts = [{"expert": "expert.0", "load": 0.65, "top": top}, {"expert": "expert.1", "load": 0.35, "top": []}]
    return {"income": {"income": {"experts": experts}}}


def cell(family: str, correlation: float, seed: int, test_loss: float, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """One training of the sweep."""
    result: dict[str, Any] = {
        "family": family, "correlation": correlation, "label_correlation": correlation / 2, "seed": seed,
        "learning_rate": 0.01, "test_loss": test_loss, "train_loss": test_loss / 2, "parameters": 100,
    }  # fmt: skip
    return {**result, **changes}


def correlation() -> dict[str, Any]:
    """A sweep of two families, three seeds and three correlations."""
    cells = [
        cell(family, p, seed, 0.05 + slope * (1 - p) + 0.001 * seed, gate_distance=(1 - p) / 3 if slope == 0 else None)
        for family, slope in (("shared_bottom", 0.02), ("mmoe", 0.0))
        for p in (0.9, 0.0, -0.5)
        for seed in range(3)
    ]
    relation = {"relation": "shared_bottom rises", "estimate": 0.02, "low": 0.01, "high": 0.03, "holds": True}
    return {"kind": "correlation", "settings": {}, "cells": cells, "relations": [relation]}


def dynamics() -> dict[str, Any]:
    """Two weightings."""
    runs = [
        {"weights": {"income": w, "marital": 1.0}, "history": [point(n) for n in (1, 2)], "test": train()["test"]}
        for w in (1.0, 4.0)
    ]
    return {"kind": "dynamics", "model": "mmoe", "dataset": "census-kdd", "seed": 0, "runs": runs}


def write(folder: Path, **documents: Any) -> Path:  # noqa: ANN401
    """Each document as a file of its keyword's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def everything(folder: Path) -> Path:
    """A folder that fills every section of the report."""
    federated: dict[str, Any] = {
        "federated": 10,
        "partition": "iid",
        "history": [point(n, unit="round") for n in (1, 2)],
    }
    return write(
        folder,
        central0=train(seed=0, income=0.940, specialisation=specialisation(HOSTILE)),
        central1=train(seed=1, income=0.942),
        bottom0=train("shared_bottom", 0, 0.937),
        bottom1=train("shared_bottom", 1, 0.936),
        trees=train("lightgbm", 0, 0.949, parameters=None, epochs=300, history=[]),
        fed0=train(seed=0, income=0.938, **federated),
        fed1=train(seed=1, income=0.939, **federated),
        correlation=correlation(),
        dynamics=dynamics(),
    )
