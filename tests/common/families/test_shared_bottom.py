"""Tabular rows: encoding declared in the configuration, two tasks on one bottom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.examples import Column, Examples
from common.errors import ConfigError, DataError, ProtocolError
from common.families import build_family, family_from_description
from common.families.base import Family
from common.tasks import TaskSpec, load_registry
from tests.common.families.tiny import config, table

CENSUS_TASKS: dict[str, TaskSpec] = load_registry(
    {
        "income": {"kind": "classification", "label": "income", "labels": ["<=50K", ">50K"]},
        "never_married": {
            "kind": "classification",
            "label": "marital",
            "labels": {"other": "*", "never": "Never-married"},
        },
        "hours": {"kind": "regression", "label": "hours"},
    },
    "test",
)

SETTINGS: dict[str, object] = {
    "family": "shared_bottom",
    "numeric": {"age": {"mean": 40, "std": 10}, "gain": {"log1p": True, "mean": 1, "std": 2}},
    "categorical": {"sex": ["Female", "Male"], "work": ["Private", "State-gov", "Self-emp"]},
    "bottom": [8, 6],
    "tower": [4],
}


def census_family(**settings: object) -> Family:
    return build_family(config(**{**SETTINGS, **settings}), CENSUS_TASKS, base_dir=Path())


def census_rows(task: str) -> Examples:
    columns: dict[str, Column] = {
        "age": ["50", " 30 ", "?", "40"],
        "gain": np.array([0.0, 99.0, np.nan, 7.0]),
        "sex": ["Male", "Female", "?", "X"],
        "work": ["Self-emp", "Private", "", "State-gov"],
    }
    labels = np.array([0, 1, 0, 1]) if task != "hours" else np.array([1, 2, 3, 4], dtype=np.float32)
    return table(task, columns, labels)


def test_rows_become_the_declared_numbers() -> None:
    features = census_family().encode("income", census_rows("income")).collate(np.arange(4))["features"]
    assert features.dtype == torch.float32
    age, age_missing, gain, gain_missing = features[:, :4].T.tolist()
    assert age == [1.0, -1.0, 0.0, 0.0]
    assert age_missing == gain_missing == [0.0, 0.0, 1.0, 0.0]
    assert gain == pytest.approx([-0.5, (np.log(100) - 1) / 2, 0.0, (np.log(8) - 1) / 2])
    assert features[:, 4:7].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]], "Female, Male, missing; X is none"
    assert features[:, 7:].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_collate_takes_rows_in_the_order_asked() -> None:
    encoded = census_family().encode("income", census_rows("income"))
    whole = encoded.collate(np.arange(4))["features"]
    assert torch.equal(encoded.collate(np.array([3, 1]))["features"], whole[[3, 1]])
    assert encoded.lengths.tolist() == [1, 1, 1, 1]
    assert encoded.labels.tolist() == [0, 1, 0, 1]
    assert len(encoded) == 4


def test_only_numeric_or_only_categorical_columns_work() -> None:
    for empty in ("numeric", "categorical"):
        family = census_family(**{empty: {}})
        batch = family.encode("income", census_rows("income")).collate(np.arange(4))
        assert family.build(["income"])("income", batch).shape == (4, 2)


def test_what_is_no_number_is_refused_with_its_row() -> None:
    rows = census_rows("income")
    broken = table("income", {**rows.columns, "age": ["50", "old", "?", "older"]}, rows.labels)
    with pytest.raises(DataError, match=r"'age' must hold numbers.*rows 2, 4.*'old'"):
        census_family().encode("income", broken)


def test_a_negative_amount_under_log1p_is_refused_with_its_row() -> None:
    rows = census_rows("income")
    broken = table("income", {**rows.columns, "gain": np.array([0.0, 1.0, -3.0, 1.0])}, rows.labels)
    with pytest.raises(DataError, match=r"'gain' has log1p set.*row 3"):
        census_family().encode("income", broken)


def test_a_column_without_indicator_is_one_input_and_refuses_missing_values() -> None:
    numeric = {"age": {"mean": 40, "std": 10, "indicator": False}, "gain": {"indicator": False}}
    family, rows = census_family(numeric=numeric), census_rows("income")
    complete: dict[str, Column] = {"age": ["50", "30", "20", "40"], "gain": np.array([0.0, 9.0, 2.0, 7.0])}
    encoded = family.encode("income", table("income", {**rows.columns, **complete}, rows.labels))
    features = encoded.collate(np.arange(4))["features"]
    assert features[:, :2].tolist() == [[1.0, 0.0], [-1.0, 9.0], [-2.0, 2.0], [0.0, 7.0]]
    shapes = {p.name: p.shape for p in family.blueprint().parameters}
    assert features.shape[1] == shapes["encoder.layers.0.weight"][1]
    with pytest.raises(DataError, match=r"'age' has no indicator.*row 3"):
        family.encode("income", rows)


def test_a_missing_column_is_refused() -> None:
    rows = census_rows("income")
    broken = table("income", {name: v for name, v in rows.columns.items() if name != "sex"}, rows.labels)
    with pytest.raises(DataError, match=r"needs the columns \['sex'\]"):
        census_family().encode("income", broken)


@pytest.mark.parametrize(
    ("column", "kind"), [("income", "categorical"), ("marital", "categorical"), ("hours", "numeric")]
)
def test_no_label_may_be_an_input_of_any_task(column: str, kind: str) -> None:
    declared = ["a", "b"] if kind == "categorical" else {}
    inputs = dict(SETTINGS[kind])  # type: ignore[call-overload]  # a mapping, as SETTINGS shows
    with pytest.raises(ConfigError, match=f"column '{column}' is an input and also the label"):
        census_family(**{kind: {**inputs, column: declared}})


def test_text_tasks_are_refused() -> None:
    tasks = load_registry({"sst2": {"use": "glue/sst2"}}, "test")
    with pytest.raises(ConfigError, match=r"model\.family: transformer"):
        build_family(config(**SETTINGS), tasks, base_dir=Path())


def test_a_loss_of_two_texts_is_refused() -> None:
    tasks = load_registry({"hours": {"kind": "regression", "label_range": [0, 99], "loss": "cosine"}}, "test")
    with pytest.raises(ConfigError, match=r"tasks\.hours\.loss: 'cosine' compares"):
        build_family(config(**SETTINGS), tasks, base_dir=Path())


def test_blueprint_model_and_first_values_agree() -> None:
    family = census_family()
    blueprint, values = family.blueprint(), family.initial_values(1)
    assert list(values) == [p.name for p in blueprint.parameters]
    model = family.build(list(CENSUS_TASKS))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {p.name: p.shape for p in blueprint.parameters}
    assert family.summary().shared_parameters == 11 * 8 + 8 + 8 * 6 + 6
    assert family.summary().head_parameters == {"income": 38, "never_married": 38, "hours": 33}
    assert {p.group for p in blueprint.parameters} == {"layer.0", "layer.1", "head"}
    assert family.feature_columns == ("age", "gain", "sex", "work")
    batch = family.encode("hours", census_rows("hours")).collate(np.arange(4))
    assert model("hours", batch).shape == (4,)
    assert model("income", batch).shape == (4, 2)


def test_first_values_depend_on_seed_and_name_alone() -> None:
    family = census_family()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = family.initial_values(1)
    family.build(["income"])
    assert torch.equal(torch.random.get_rng_state(), before)
    two, other = census_family().initial_values(1), family.initial_values(2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    bound = 11**-0.5
    assert one["encoder.layers.0.weight"].abs().max() <= bound
    assert one["encoder.layers.0.bias"].abs().max() <= bound


def test_a_client_rebuilds_the_same_model() -> None:
    family = census_family()
    client = family_from_description(json.loads(json.dumps(family.describe())), family.assets(), CENSUS_TASKS)
    assert client.blueprint() == family.blueprint()
    assert client.feature_columns == family.feature_columns
    rows = census_rows("income")
    ours, theirs = (f.encode("income", rows).collate(np.arange(4))["features"] for f in (family, client))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("damage", [{"towers": {}}, {"surprise": 1}, {"config": {"family": "shared_bottom"}}])
def test_a_description_that_is_not_understood_is_a_protocol_error(damage: dict[str, object]) -> None:
    with pytest.raises(ProtocolError) as caught:
        family_from_description({**census_family().describe(), **damage}, {}, CENSUS_TASKS)
    assert caught.value.code == "bad_description"


def test_a_tower_may_be_a_single_layer() -> None:
    assert census_family(tower=[]).summary().head_parameters == {"income": 14, "never_married": 14, "hours": 7}


def test_both_tasks_are_learnt_together() -> None:
    """A few steps on planted rows beat chance by far, so gradients reach bottom and towers."""
    generator = np.random.default_rng(1)
    age, sex = generator.normal(40, 10, 400), generator.integers(0, 2, 400)
    columns: dict[str, Column] = {
        "age": age,
        "gain": np.zeros(400),
        "sex": ["Male" if s else "Female" for s in sex],
        "work": ["Private"] * 400,
    }
    labels = {"income": (age > 40).astype(np.int64), "never_married": sex.astype(np.int64)}
    family = census_family()
    model = family.build(list(CENSUS_TASKS))
    model.load_state_dict(family.initial_values(1))
    encoded = {task: family.encode(task, table(task, columns, labels[task])) for task in labels}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        for task, split in encoded.items():
            loss = torch.nn.functional.cross_entropy(model(task, split.collate(np.arange(400))), split.labels)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for task, split in encoded.items():
        accuracy = (model(task, split.collate(np.arange(400))).argmax(1) == split.labels).float().mean()
        assert accuracy > 0.95, task
