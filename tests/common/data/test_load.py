from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data import Shard, load_examples
from common.data.examples import Examples
from common.errors import ConfigError, DataError
from common.tasks import TaskSpec, load_registry

ROWS = 60
#: Three groups of 20; every second row is positive.
TABLE = [{"s": f"text {i}", "label": ["neg", "pos"][i % 2], "group": f"g{i // 20}", "n": i} for i in range(ROWS)]


def _task(data: dict[str, Any] | None = None, **entry: Any) -> TaskSpec:  # noqa: ANN401
    base = {"kind": "classification", "text": "s", "labels": ["neg", "pos"], "data": {"train": "t.csv"} | (data or {})}
    return load_registry({"t": base | entry}, "test")["t"]


def _write(path: Path, rows: list[dict[str, Any]] = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    separator = "\t" if path.suffix == ".tsv" else ","
    lines = [list(rows[0]), *(row.values() for row in rows)]
    path.write_text("".join(separator.join(map(str, line)) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("data") / "t.csv").parent


def _load(task: TaskSpec, split: Any = "train", *, data: Path | None, **arguments: Any) -> Examples:  # noqa: ANN401
    return load_examples(task, split, data=data, **({"shard": None, "seed": 1} | arguments))


def _rows(examples: Examples) -> set[int]:
    assert examples.columns["s"] == [f"text {row - 1}" for row in examples.rows.tolist()], "text moves with its row"
    assert examples.labels.tolist() == [(row - 1) % 2 for row in examples.rows.tolist()]
    return set(examples.rows.tolist())


schemes = st.one_of(
    st.just({"scheme": "iid"}),
    st.floats(0.3, 100).map(lambda alpha: {"scheme": "dirichlet", "alpha": alpha}),
    st.just({"scheme": "column", "column": "group"}),
)


@given(
    sharding=schemes,
    count=st.integers(1, 3),
    limit=st.none() | st.integers(30, 80),
    take=st.sampled_from(["sample", "head"]),
    seed=st.integers(0, 2**32),
)
def test_clients_of_a_task_divide_both_splits_without_overlap_or_loss(
    folder: Path, sharding: dict[str, Any], count: int, limit: int | None, take: str, seed: int
) -> None:
    spec = _task({"validation": 0.2, "sharding": sharding, "limits": {"train": limit, "take": take}})

    def rows(split: str, shard: Shard | None) -> set[int]:
        return _rows(_load(spec, split, data=folder, shard=shard, seed=seed))

    whole = {split: rows(split, None) for split in ("train", "validation")}
    assert not whole["train"] & whole["validation"]
    assert len(whole["train"]) == min(48, limit or 48)
    assert len(whole["validation"]) == 12
    if sharding["scheme"] == "column" and limit is not None and take == "head":
        return  # the first rows may hold fewer groups than there are shards
    for split, expected in whole.items():
        parts = [rows(split, Shard(index, count)) for index in range(count)]
        assert all(parts)
        if split == "validation":
            assert max(map(len, parts)) - min(map(len, parts)) <= 1, "validation rows are divided evenly, always"
        assert sum(map(len, parts)) == len(expected)
        assert set().union(*parts) == expected


def test_regression_is_divided_by_deciles_of_the_score(folder: Path) -> None:
    spec = _task({"sharding": {"scheme": "dirichlet", "alpha": 0.3}}, kind="regression", labels=[], label="n")
    parts = [_load(spec, data=folder, shard=Shard(i, 3)) for i in range(3)]
    assert sum(map(len, parts)) == 54
    shares = [np.histogram(part.labels, bins=[0, 20, 40, 60])[0] / len(part) for part in parts]
    assert np.ptp(shares, axis=0).max() > 0.2


def test_a_column_keeps_its_groups_together(folder: Path) -> None:
    spec = _task({"sharding": {"scheme": "column", "column": "group"}})
    parts = [_load(spec, data=folder, shard=Shard(i, 2), columns=["group"]) for i in range(2)]
    assert not set(parts[0].columns["group"]) & set(parts[1].columns["group"])
    assert "shard 0/2 (column)" in parts[0].source


@pytest.mark.parametrize(
    ("sharding", "count", "message"),
    [
        ({}, 100, "54 rows cannot be divided into 100 shards"),
        ({"scheme": "column", "column": "group"}, 4, "3 distinct values cannot be divided into 4 shards"),
        ({"scheme": "column", "column": "nope"}, 2, "no column 'nope'"),
        ({"scheme": "dirichlet", "alpha": 0.001}, 40, "larger `sharding.alpha`"),
    ],
)
def test_a_division_that_leaves_a_client_without_rows_is_refused(
    folder: Path, sharding: dict[str, Any], count: int, message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        _load(_task({"sharding": sharding}), data=folder, shard=Shard(0, count))
    assert "t.csv" in str(refused.value)


def test_the_tasks_own_seed_takes_the_place_of_the_runs(folder: Path) -> None:
    free, fixed = _task({"limits": {"train": 10}}), _task({"limits": {"train": 10}, "seed": 5})
    assert _rows(_load(free, data=folder, seed=1)) != _rows(_load(free, data=folder, seed=2))
    assert _rows(_load(fixed, data=folder, seed=1)) == _rows(_load(fixed, data=folder, seed=2))


def test_tasks_over_one_file_hold_out_the_same_rows(folder: Path) -> None:
    other = load_registry({"u": {"kind": "regression", "text": "s", "label": "n", "data": {"train": "t.csv"}}}, "test")[
        "u"
    ]
    held_out = _load(other, "validation", data=folder).rows
    assert held_out.tolist() == _load(_task(), "validation", data=folder).rows.tolist()


def test_head_takes_the_first_rows(tmp_path: Path) -> None:
    _write(tmp_path / "t.csv")
    _write(tmp_path / "dev.csv")
    spec = _task({"validation": "dev.csv", "limits": {"train": 3, "validation": 2, "take": "head"}})
    assert _rows(_load(spec, data=tmp_path)) == {1, 2, 3}
    assert _rows(_load(spec, "validation", data=tmp_path)) == {1, 2}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_every_file_type_gives_the_same_examples(folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "t.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    elif name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(TABLE), path)
    else:
        _write(path)
    expected = _load(_task(), data=folder, columns=["n"])
    found = _load(_task({"train": name}), data=tmp_path, columns=["n"])
    assert _rows(found) == _rows(expected)
    assert found.numbers("n").tolist() == expected.numbers("n").tolist()


def test_validation_rows_of_the_test_file_leave_all_training_rows_and_the_rest_for_the_test(tmp_path: Path) -> None:
    _write(tmp_path / "t.csv")
    _write(tmp_path / "test.csv", TABLE[:21])
    spec = _task({"test": "test.csv", "validation": 1 / 3, "validation_from": "test", "limits": {"test": 10}})
    rows = {split: _rows(_load(spec, split, data=tmp_path)) for split in ("train", "validation", "test")}
    assert [len(found) for found in rows.values()] == [60, 7, 10]
    assert not rows["validation"] & rows["test"]
    assert rows["validation"] != _rows(_load(spec, "validation", data=tmp_path, seed=2))
    assert rows["validation"] < set(range(1, 22))
    alone = _load(spec, "validation", data=tmp_path / "t.csv")
    assert len(alone) == 6, "one file of training rows has no test file to take them from: a tenth"
    for wrong, named in (
        ({"test": None}, "`test` is not given"),
        ({"validation": "dev.csv"}, "`validation` names a file"),
    ):
        with pytest.raises(ConfigError, match=f"validation_from: test .* {named}"):
            _task({"test": "test.csv", "validation_from": "test"} | wrong)


def test_one_file_replaces_the_training_rows_and_a_tenth_is_held_out(tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.tsv")
    for spec in (_task({"validation": "dev.csv"}), _task({"train": None}), _task({"hub": "x", "train": "train"})):
        assert len(_load(spec, data=path)) == 54
        assert len(_load(spec, "validation", data=path)) == 6
    assert len(_load(_task({"validation": 0.5}), "validation", data=path)) == 30
    with pytest.raises(DataError, match="task 't' has no test split"):
        _load(_task({"test": "test.csv"}), "test", data=path)


def test_a_file_of_another_type_than_the_task_describes_speaks_for_itself(tmp_path: Path) -> None:
    headless = {"type": "csv", "header": False, "columns": ["s", "label"]}
    assert len(_load(_task({"format": headless}), data=_write(tmp_path / "mine.tsv"))) == 54
    (tmp_path / "mine.dat").write_text("text 0,neg\ntext 1,pos\n")
    assert len(_load(_task({"format": headless}), data=tmp_path / "mine.dat")) == 1


def test_a_folder_holds_the_splits_of_a_task_that_names_no_files(tmp_path: Path) -> None:
    _write(tmp_path / "t" / "train.tsv")
    _write(tmp_path / "t" / "dev.tsv", TABLE[:7])
    _write(tmp_path / "t" / "test.tsv", TABLE[:5])
    (tmp_path / "t" / "train.txt").write_text("notes")
    spec = _task({"hub": "x", "train": "train", "limits": {"train": 50}})
    for data in (tmp_path, tmp_path / "t"):
        assert [len(_load(spec, split, data=data)) for split in ("train", "validation", "test")] == [50, 7, 5]


def test_a_folder_without_or_with_two_training_files_is_refused(tmp_path: Path) -> None:
    spec = _task({"train": None})
    with pytest.raises(DataError, match=r"holds no file train\.csv"):
        _load(spec, data=tmp_path)
    _write(tmp_path / "train.csv")
    _write(tmp_path / "train.tsv")
    with pytest.raises(DataError, match=r"more than one train file: train\.csv, train\.tsv"):
        _load(spec, data=tmp_path)


def test_without_data_paths_lie_in_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert len(_load(_task(), data=None)) == 54
    with pytest.raises(DataError, match="--data"):
        _load(_task({"train": None}), data=None)
    with pytest.raises(DataError, match=r"no such file or folder"):
        _load(_task(), data=Path("nowhere"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("s,label\n")
    with pytest.raises(DataError, match=r"t\.csv: the train split of task 't' has no rows"):
        _load(_task(), data=tmp_path)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_bad_row_is_refused_whichever_split_it_falls_into(tmp_path: Path, split: str) -> None:
    _write(tmp_path / "t.csv", [*TABLE, {**TABLE[0], "label": "maybe"}])
    with pytest.raises(DataError, match=rf"data row {ROWS + 1}: found 'maybe'; allowed: 'neg', 'pos'"):
        _load(_task(), split, data=tmp_path)


def test_the_label_is_no_feature_and_something_must_be_read(folder: Path) -> None:
    with pytest.raises(DataError, match="label column 'label' is among the feature columns"):
        _load(_task(), data=folder, columns=["label"])
    with pytest.raises(DataError, match="no feature columns"):
        _load(_task(text=[]), data=folder)


def test_synthetic_rows_are_called_so_and_can_be_sharded() -> None:
    spec = load_registry({"sst2": {"use": "sst2", "data": {"synthetic": "sst2", "train": 40, "validation": 10}}}, "t")[
        "sst2"
    ]
    parts = [load_examples(spec, "train", data=None, shard=Shard(i, 3), seed=1) for i in range(3)]
    assert Counter(len(part) for part in parts) == {13: 2, 14: 1}
    assert all("synthetic" in part.source and "not real data" in part.source for part in parts)
    assert len(load_examples(spec, "validation", data=None, shard=None, seed=1)) == 10
    with pytest.raises(DataError, match="no test split"):
        load_examples(spec, "test", data=None, shard=None, seed=1)


def test_weights_move_with_their_rows_and_are_no_input(tmp_path: Path) -> None:
    _write(tmp_path / "t.csv")
    spec = _task({"validation": 0.2}, weight="n")
    part = _load(spec, data=tmp_path, shard=Shard(1, 3))
    assert part.weights is not None
    assert part.weights.tolist() == (part.rows - 1).tolist()
    with pytest.raises(DataError, match="its weight column 'n' is among the feature columns"):
        _load(spec, data=tmp_path, columns=["n"])
    with pytest.raises(ConfigError, match="weight 'label' can't be"):
        _task(weight="label")


@pytest.mark.parametrize("sharding", [{}, {"scheme": "column", "column": "group"}])
def test_two_labels_of_the_same_rows_give_each_client_the_same_rows(folder: Path, sharding: dict[str, Any]) -> None:
    first = _task({"validation": 0.2, "sharding": sharding, "limits": {"train": 40}})
    spec = {"kind": "regression", "text": "s", "label": "n", "data": first.data.model_dump(exclude_defaults=True)}
    second = load_registry({"other": spec}, "test")["other"]
    for index in range(3):
        parts = [_load(task, data=folder, shard=Shard(index, 3), seed=7) for task in (first, second)]
        assert parts[0].rows.tolist() == parts[1].rows.tolist()
        assert parts[0].rows.tolist() == sorted(parts[0].rows), "in the order of the file"
