"""A federation that is small enough for a test: three tasks of synthetic text, a BERT of width 16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

TASKS: Final = ("sst2", "qqp", "stsb")

_SMALL: Final[Mapping[str, Any]] = {
    "run": {"rounds": 2, "seed": 3},
    # Real clients on a busy machine may be starved for seconds; tests of silence set their own limit.
    "server": {"port": 0, "limits": {"silence_s": 30.0}},
    "federation": {"min_clients": 3},
    "model": {
        "family": "transformer",
        "encoder": {
            "config": {
                "model_type": "bert",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 40,
            },
            "tokenizer": "synthetic-words",
        },
        "pooling": "mean",
        "dropout": 0.0,
        "encoder_dropout": 0.0,
        "max_length": 32,
    },
    "training": {"local_steps": 2, "batch_size": 16, "learning_rate": 1e-3},
}


def small(tasks: Sequence[str] = TASKS, *, rows: int = 64, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration; `sections` are laid over it, key by key."""
    config = deepcopy(dict(_SMALL))
    config["tasks"] = {
        task: {"use": task, "data": {"synthetic": task, "train": rows, "validation": rows // 2}} for task in tasks
    }
    return _over(config, sections)


def _over(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in top.items():
        inner = base.get(key)
        base[key] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return base
