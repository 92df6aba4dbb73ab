from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from common.data import load_examples
from common.errors import DataError
from common.tasks import TaskSpec, load_registry


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no cache outside the test's folder, whatever the machine's settings."""
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def _save(folder: Path, names: list[str] | None = None) -> Path:
    """A dataset folder in the hub's format: parquet files named after their splits."""
    label = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({"sentence": datasets.Value("string"), "label": label})
    for split, rows in {"train": 10, "validation": 4}.items():
        columns = {"sentence": [f"{split} {i}" for i in range(rows)], "label": [i % 2 for i in range(rows)]}
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return folder


def _task(hub: Path | str, **data: Any) -> TaskSpec:  # noqa: ANN401
    entry = {"use": "sst2", "data": {"hub": str(hub), **data}}
    return load_registry({"sst2": entry}, "test")["sst2"]


def test_both_splits_of_a_hub_dataset_are_read(tmp_path: Path) -> None:
    spec = _task(_save(tmp_path / "set"))
    train = load_examples(spec, "train", data=None, shard=None, seed=0)
    assert train.columns["sentence"] == [f"train {i}" for i in range(10)]
    assert train.labels.tolist() == [0, 1] * 5
    assert "hub dataset" in train.source
    assert len(load_examples(spec, "validation", data=None, shard=None, seed=0)) == 4


def test_split_slices_and_fractions_work_on_a_hub_dataset(tmp_path: Path) -> None:
    spec = _task(_save(tmp_path / "set"), train="train[:5]", validation=0.4)
    train, held_out = (load_examples(spec, split, data=None, shard=None, seed=0) for split in ("train", "validation"))
    assert sorted([*train.rows.tolist(), *held_out.rows.tolist()]) == [1, 2, 3, 4, 5]
    assert len(held_out) == 2


def test_class_names_of_the_dataset_win_over_its_ids(tmp_path: Path) -> None:
    reversed_names = _task(_save(tmp_path / "reversed", ["positive", "negative"]))
    assert load_examples(reversed_names, "train", data=None, shard=None, seed=0).labels.tolist() == [1, 0] * 5
    other_names = _task(_save(tmp_path / "other", ["bad", "good"]))
    assert load_examples(other_names, "train", data=None, shard=None, seed=0).labels.tolist() == [0, 1] * 5


def test_hidden_labels_are_refused(tmp_path: Path) -> None:
    folder = _save(tmp_path / "set", ["negative", "positive"])
    path = folder / "data" / "test-00000-of-00001.parquet"
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    datasets.Dataset.from_dict({"sentence": ["a"], "label": [-1]}, features=features).to_parquet(str(path))
    with pytest.raises(DataError, match=r"split test: label column 'label', data row 1: found -1"):
        load_examples(_task(folder, test="test"), "test", data=None, shard=None, seed=0)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"hub": "nobody/no-such-dataset-of-fedmtl"}, "nobody/no-such-dataset-of-fedmtl"),
        ({"train": "training"}, "training"),
        ({"config": "none"}, "none"),
    ],
)
def test_a_dataset_that_cannot_be_had_is_refused_with_what_was_tried(
    tmp_path: Path, data: dict[str, str], found: str
) -> None:
    folder = _save(tmp_path / "set")
    with pytest.raises(DataError, match=r"Tried datasets\.load_dataset\(.*without a network") as refused:
        load_examples(_task(**({"hub": folder} | data)), "train", data=None, shard=None, seed=0)
    assert found in str(refused.value)


def test_a_missing_column_of_a_hub_dataset_is_refused(tmp_path: Path) -> None:
    spec = _task(_save(tmp_path / "set")).model_copy(update={"text": ("text",)})
    with pytest.raises(DataError, match=r"no column 'text'; the columns are 'sentence', 'label'"):
        load_examples(spec, "train", data=None, shard=None, seed=0)
