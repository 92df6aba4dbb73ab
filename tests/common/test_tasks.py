from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from common.data.config import FilesSource, HubSource, SyntheticSource
from common.errors import ConfigError
from common.tasks import TaskSpec, load_registry, shipped_tasks

TICKETS: dict[str, Any] = {
    "kind": "classification",
    "text": "subject",
    "labels": ["question", "complaint", "praise"],
    "data": {"train": "tickets.csv"},
}


def _one(entry: object, name: str = "t") -> TaskSpec:
    return load_registry({name: entry}, "my.yaml")[name]


def test_importing_tasks_loads_no_heavy_library() -> None:
    code = "import sys, common.tasks, common.data; print({'torch', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("key", shipped_tasks())
def test_every_shipped_task_is_valid_and_travels_as_json(key: str) -> None:
    spec = _one({"use": key})
    assert TaskSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"), sort_keys=True))) == spec


def test_all_glue_tasks_are_shipped() -> None:
    glue = {key.removeprefix("glue/") for key in shipped_tasks() if key.startswith("glue/")}
    assert glue == {"sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}


def test_what_a_task_leaves_out_follows_from_its_kind() -> None:
    spec = _one(TICKETS)
    assert (spec.name, spec.text, spec.label, spec.num_outputs) == ("t", ("subject",), "label", 3)
    assert spec.label_names == ("question", "complaint", "praise")
    assert (spec.loss.kind, spec.metrics, spec.primary_metric) == ("cross_entropy", ("accuracy",), "accuracy")
    score = _one({"kind": "regression", "text": ["a", "b"], "metrics": "mse"})
    assert (score.loss.kind, score.num_outputs, score.label_names, score.metrics) == ("mse", 1, (), ("mse",))
    assert score.data == FilesSource()


@pytest.mark.parametrize(
    ("loss", "written"),
    [
        ("cross_entropy", "cross_entropy"),
        ({"kind": "cross_entropy"}, "cross_entropy"),
        ({"label_smoothing": 0.1}, {"kind": "cross_entropy", "class_weights": {}, "label_smoothing": 0.1}),
        ({"kind": "focal", "gamma": 1}, {"kind": "focal", "gamma": 1.0, "class_weights": {}}),
    ],
)
def test_a_loss_is_a_name_or_a_mapping_and_travels_as_the_shortest_of_both(loss: object, written: object) -> None:
    spec = _one(TICKETS | {"loss": loss})
    assert spec.model_dump(mode="json")["loss"] == written
    assert TaskSpec.model_validate_json(spec.model_dump_json()) == spec


def test_class_weights_stand_in_id_order_and_are_one_where_left_out() -> None:
    assert _one(TICKETS | {"loss": {"class_weights": {"praise": 3, "question": 0.5}}}).class_weights == (0.5, 1.0, 3.0)
    assert _one(TICKETS).class_weights is None


def test_labels_keep_their_order_when_keys_are_sorted_on_the_way() -> None:
    spec = _one(TICKETS | {"labels": {"z": ["b", 1], "a": "*"}})
    again = TaskSpec.model_validate_json(json.dumps(spec.model_dump(mode="json"), sort_keys=True))
    assert again.label_names == ("z", "a")
    assert again.labels[0].values == ("b", "1")


def test_an_override_that_says_where_rows_come_from_replaces_the_shipped_source() -> None:
    files = _one({"use": "qqp", "data": {"train": "q/train.tsv", "validation": "q/dev.tsv"}}).data
    assert files == FilesSource(train="q/train.tsv", validation="q/dev.tsv")
    synthetic = _one({"use": "glue/qqp", "data": {"synthetic": "qqp", "train": 7}}).data
    assert synthetic == SyntheticSource(synthetic="qqp", train=7)


def test_any_other_override_is_laid_over_the_shipped_source() -> None:
    data = _one({"use": "mnli", "metrics": ["f1"], "data": {"limits": {"train": 5}, "seed": 3}}).data
    assert isinstance(data, HubSource)
    assert (data.hub, data.validation, data.limits.train, data.seed) == ("nyu-mll/glue", "validation_matched", 5, 3)
    income = _one({"use": "census/income", "data": {"format": {"missing": ["-"]}}}).data
    assert isinstance(income, FilesSource)
    assert (income.format.missing, income.format.comment) == (("-",), "|")


def test_where_rows_come_from_is_said_in_words() -> None:
    assert _one({"use": "sst2"}).source == "hub dataset nyu-mll/glue (sst2)"
    assert _one({"use": "sst2", "data": {"synthetic": "sst2"}}).source.startswith("synthetic sst2")
    assert "tickets.csv" in _one(TICKETS).source
    assert _one(TICKETS | {"data": {}}).source == "each client's own data"


@pytest.mark.parametrize(
    ("entry", "messages"),
    [
        ("sst2", ["tasks.t: 'sst2' is not a task", "{use: glue/sst2}"]),
        ({}, ["tasks.t.kind: missing"]),
        ({"use": "sst3"}, ["tasks.t.use: 'sst3'", "glue/sst2", "census/income"]),
        ({"use": "income"}, ["tasks.t.use: 'income' is the name of several: write census-kdd/income or census/income"]),
        ({"use": "sst2", "name": "x"}, ["tasks.t.name: 'x'"]),
        ({"use": "sst2", "data": {"limits": {"trian": 3}}}, ["tasks.t.data.limits.trian: unknown key", "train, valid"]),
        ({"use": "sst2", "data": {"hub": "x", "format": {}}}, ["tasks.t.data.format: unknown key", "revision"]),
        ({"use": "sst2", "colour": 1}, ["tasks.t.colour: unknown key", "kind, text", "use"]),
        (
            {"use": "sst2", "data": {"limits": {"train": 0}}},
            ["tasks.t.data.limits.train: 0", "greater than or equal to 1"],
        ),
        (TICKETS | {"kind": "ranking"}, ["tasks.t.kind: 'ranking'", "'classification' or 'regression'"]),
        (TICKETS | {"labels": []}, ["at least two class names"]),
        (TICKETS | {"labels": ["a", "a"]}, ["class name given twice: ['a']"]),
        (TICKETS | {"labels": {"a": "x", "b": ["x", "y"]}}, ["raw label value given twice: ['x']"]),
        (TICKETS | {"labels": [True, False]}, ["tasks.t.labels", "put it in quotes"]),
        (TICKETS | {"labels": [{"name": "a", "valeus": []}, "b"]}, ["tasks.t.labels.0.valeus: unknown key", "values"]),
        (TICKETS | {"metrics": ["pearson"]}, ["['pearson']", "'accuracy', 'f1', 'matthews', 'auc'"]),
        (TICKETS | {"metrics": ["acc"]}, ["tasks.t.metrics.0: 'acc'", "'accuracy'"]),
        (TICKETS | {"metrics": []}, ["tasks.t: `metrics` is empty"]),
        (TICKETS | {"loss": "mse"}, ["'mse' does not fit", "'cross_entropy', 'focal'"]),
        (TICKETS | {"loss": "hinge"}, ["tasks.t.loss: 'hinge'", "cross_entropy, focal for a class"]),
        (TICKETS | {"loss": {"kind": "focal", "gama": 1}}, ["tasks.t.loss.gama: unknown key", "gamma, class_weights"]),
        (TICKETS | {"loss": {"label_smoothing": 1}}, ["tasks.t.loss.label_smoothing: 1", "less than 1"]),
        (
            TICKETS | {"loss": {"class_weights": {"prais": 2}}},
            ["class_weights names no class of the task: ['prais']", "'praise'"],
        ),
        (TICKETS | {"loss": {"class_weights": {"praise": 0}}}, ["loss.class_weights.praise: 0", "greater than 0"]),
        ({"kind": "regression", "text": ["a", "b"], "loss": {"kind": "huber", "delta": 0}}, ["tasks.t.loss.delta: 0"]),
        ({"kind": "regression", "text": ["a", "b"], "loss": "cosine"}, ["'cosine' needs `label_range`"]),
        (TICKETS | {"text": ["a", "b", "c"]}, ["tasks.t.text", "at most 2"]),
        (TICKETS | {"text": "label"}, ["different columns"]),
        (TICKETS | {"label_range": [0, 1]}, ["`label_range` is for regression"]),
        ({"kind": "regression", "text": "s", "labels": ["a", "b"]}, ["a regression task has no `labels`"]),
        ({"kind": "regression", "text": "s", "label_range": [5, 0]}, ["[lowest, highest]"]),
        (
            TICKETS | {"data": {"train": "t.csv", "validation": 1.5}},
            ["tasks.t.data.validation: 1.5", "between 0 and 1"],
        ),
        (TICKETS | {"data": {"train": "t", "format": {"header": False}}}, ["tasks.t.data.format", "`columns`"]),
        (
            TICKETS | {"data": {"train": "t", "format": {"type": "xls"}}},
            ["tasks.t.data.format.type: 'xls'", "'parquet'"],
        ),
        (TICKETS | {"data": {"sharding": {"scheme": "dirichlet"}}}, ["tasks.t.data.sharding", "`alpha`"]),
        (TICKETS | {"data": {"sharding": {"scheme": "iid", "column": "c"}}}, ["tasks.t.data.sharding", "`column`"]),
        (TICKETS | {"data": {"validation": "dev.csv"}}, ["tasks.t.data", "validation name files but `train` does not"]),
        (TICKETS | {"data": {"synthetic": "cola"}}, ["tasks.t.data.synthetic: 'cola'", "'sst2', 'qqp' or 'stsb'"]),
    ],
)
def test_a_wrong_entry_is_refused_with_file_key_value_and_what_is_allowed(entry: object, messages: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        _one(entry)
    for part in ("my.yaml", *messages):
        assert part in str(refused.value)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "a+b", "a@b", "_a", "-a"])
def test_a_name_that_cannot_stand_in_a_slot_or_module_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a task name holds"):
        _one(TICKETS, name)


def test_no_task_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml: tasks: no task"):
        load_registry({}, "my.yaml")


def test_a_task_of_ones_own_takes_ten_lines_of_yaml() -> None:
    text = """
    tickets:
      kind: classification
      text: [subject, body]
      label: kind
      labels: {question: [q, "?"], complaint: c, other: "*"}
      metrics: [f1, accuracy]
      data:
        train: tickets.jsonl.gz
        validation: 0.2
        limits: {train: 5000}
    """
    spec = load_registry(yaml.safe_load(text), "my.yaml")["tickets"]
    assert spec.label_names == ("question", "complaint", "other")
