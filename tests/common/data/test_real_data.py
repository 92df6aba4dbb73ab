"""The shipped tasks over the real files that they were written for, where these are at hand."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data import Shard, load_examples
from common.tasks import TaskSpec, load_registry, shipped_tasks

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("FEDMTL_DATA", ROOT / "../shared/data")).resolve()

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set FEDMTL_DATA to the folder")

#: task, files, rows and labels of each split, as the data's own README states them.
GLUE: list[tuple[str, dict[str, str], dict[str, list[int]]]] = [
    (
        "sst2",
        {"train": "sst2/train.tsv.gz", "validation": "sst2/dev.tsv", "test": "sst2/test.tsv"},
        {"train": [29780, 37569], "validation": [428, 444], "test": [912, 909]},
    ),
    (
        "qqp",
        {"train": "qqp/train.tsv.gz", "validation": "qqp/dev.tsv.gz"},
        {"train": [27361, 23756], "validation": [3119, 1881]},
    ),
    (
        "mrpc",
        {
            split: f"glue_other/mrpc/{name}.tsv"
            for split, name in (("train",) * 2, ("validation", "dev"), ("test",) * 2)
        },
        {"train": [1194, 2474], "validation": [129, 279], "test": [578, 1147]},
    ),
    (
        "rte",
        {"train": "glue_other/rte/train.tsv", "validation": "glue_other/rte/dev.tsv"},
        {"train": [1249, 1241], "validation": [146, 131]},
    ),
    (
        "cola",
        {"train": "glue_other/cola/train.tsv", "validation": "glue_other/cola/dev.tsv"},
        {"train": [2528, 6023], "validation": [322, 721]},
    ),
    (
        "wnli",
        {"train": "glue_other/wnli/train.tsv", "validation": "glue_other/wnli/dev.tsv"},
        {"train": [323, 312], "validation": [40, 31]},
    ),
    (
        "qnli",
        {"train": "glue_other/qnli/train_sample.tsv", "validation": "glue_other/qnli/dev.tsv"},
        {"train": [5027, 4972], "validation": [2702, 2761]},
    ),
    (
        "mnli",
        {"train": "glue_other/mnli/train_sample.tsv", "validation": "glue_other/mnli/dev_sample.tsv"},
        {"train": [3061, 2980, 2958], "validation": [347, 333, 320]},
    ),
]


def _task(name: str, data: dict[str, Any] | None = None) -> TaskSpec:
    use = f"census/{name}" if f"census/{name}" in shipped_tasks() else name
    return load_registry({name: {"use": use} | ({"data": data} if data else {})}, "test")[name]


@pytest.mark.parametrize(("name", "files", "counts"), GLUE, ids=[name for name, _, _ in GLUE])
def test_rows_and_labels_of_the_glue_tasks(name: str, files: dict[str, str], counts: dict[str, list[int]]) -> None:
    spec = _task(name, dict(files))
    for split in ("train", "validation", "test"):
        if split in files:
            examples = load_examples(spec, split, data=DATA, shard=None, seed=0)
            assert np.bincount(examples.labels).tolist() == counts[split]


def test_rows_and_scores_of_stsb() -> None:
    spec = _task("stsb", {"train": "stsb/train.tsv", "validation": "stsb/dev.tsv", "test": "stsb/test.tsv"})
    for split, rows, mean in (("train", 5749, 2.701), ("validation", 1500, 2.364), ("test", 1379, 2.608)):
        labels = load_examples(spec, split, data=DATA, shard=None, seed=0).labels  # type: ignore[arg-type]
        assert (len(labels), round(float(labels.mean()), 3)) == (rows, mean)
        assert (labels.min(), labels.max()) == (0, 5)


def test_a_task_configured_for_the_hub_finds_the_files_of_a_data_folder() -> None:
    spec = _task("sst2")
    assert len(load_examples(spec, "train", data=DATA, shard=None, seed=0)) == 67349
    assert len(load_examples(spec, "validation", data=DATA, shard=None, seed=0)) == 872


def test_reading_sst2_takes_less_than_a_second() -> None:
    started = time.process_time()
    load_examples(_task("sst2"), "train", data=DATA, shard=None, seed=0)
    assert time.process_time() - started < 1


def test_qqp_is_sharded_by_its_source_column() -> None:
    spec = _task(
        "qqp", {"train": "qqp/train.tsv.gz", "validation": 0.1, "sharding": {"scheme": "column", "column": "source"}}
    )
    parts = [load_examples(spec, "train", data=DATA, shard=Shard(i, 4), seed=0, columns=["source"]) for i in range(4)]
    assert sorted(len(set(part.columns["source"])) for part in parts) == [1, 1, 1, 1]
    assert sum(map(len, parts)) == 51117 - 5112


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [("income", [24720, 7841], [12435, 3846]), ("marital_status", [32561 - 10683, 10683], [16281 - 5434, 5434])],
)
def test_rows_and_labels_of_the_census_tasks(name: str, train: list[int], validation: list[int]) -> None:
    columns = ["age", "workclass", "occupation", "native_country", "hours_per_week"]
    for split, counts, missing in (("train", train, 2399), ("validation", validation, 1221)):
        examples = load_examples(_task(name), split, data=DATA, shard=None, seed=0, columns=columns)  # type: ignore[arg-type]
        assert np.bincount(examples.labels).tolist() == counts
        age = examples.numbers("age")
        assert age.min() == 17
        assert age.max() == 90
        absent = [examples.categories(column) for column in ("workclass", "occupation", "native_country")]
        assert sum("" in row for row in zip(*absent, strict=True)) == missing
