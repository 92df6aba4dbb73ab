"""Tiny configurations, tasks and rows that the tests of families and export share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from common.data.examples import Column, Examples
from common.families import build_family
from common.families.base import Family
from common.families.config import ModelConfig
from common.tasks import TaskSpec, load_registry

TASKS: dict[str, TaskSpec] = load_registry(
    {
        "sst2": {"kind": "classification", "text": "sentence", "labels": ["negative", "positive"]},
        "qqp": {"kind": "classification", "text": ["one", "two"], "labels": ["different", "duplicate"]},
        "stsb": {"kind": "regression", "text": ["one", "two"], "label": "score"},
    },
    "tiny.py",
)

_SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40}

#: Architecture to the configuration of a tiny encoder with two or three layers.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "num_hidden_layers": 3, **_SIZES},
    "minilm": {"model_type": "bert", "num_hidden_layers": 3, **_SIZES, "hidden_size": 24, "intermediate_size": 96},
    "roberta": {"model_type": "roberta", "num_hidden_layers": 3, "type_vocab_size": 1, **_SIZES},
    "distilroberta": {"model_type": "roberta", "num_hidden_layers": 2, "type_vocab_size": 1, **_SIZES},
    "deberta-v2": {
        "model_type": "deberta-v2",
        "num_hidden_layers": 3,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        **_SIZES,
    },
    "distilbert": {
        "model_type": "distilbert",
        "n_layers": 3,
        "dim": 32,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
    },
    "albert": {"model_type": "albert", "num_hidden_layers": 3, "embedding_size": 16, **_SIZES},
}

WORDS = ("a good film", "not a bad one at all , really", "dull", "the plot is thin and the jokes are old", "fine")


def config(**settings: object) -> ModelConfig:
    """A `model:` section."""
    adapter: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
    return adapter.validate_python(settings)


def text_family(encoder: str = "bert", *, tasks: Mapping[str, TaskSpec] = TASKS, **settings: object) -> Family:
    """A transformer family over the synthetic vocabulary, trained from scratch."""
    inline = {"config": ENCODERS[encoder], "tokenizer": "synthetic-words"}
    return build_family(
        config(**{"family": "transformer", "encoder": inline, "max_length": 32, **settings}), tasks, base_dir=Path()
    )


def texts(task: str, rows: Sequence[str] = WORDS) -> Examples:
    """Rows of one of `TASKS`."""
    spec = TASKS[task]
    columns: dict[str, Column] = {column: list(rows[i:]) + list(rows[:i]) for i, column in enumerate(spec.text)}
    labels = (
        np.linspace(0, 5, len(rows), dtype=np.float32)
        if spec.kind == "regression"
        else np.arange(len(rows), dtype=np.int64) % 2
    )
    return table(task, columns, labels)


def table(task: str, columns: Mapping[str, Column], labels: np.ndarray) -> Examples:
    """Rows with given columns."""
    return Examples(task, "train", columns, labels, np.arange(1, len(labels) + 1), "tiny rows")
