"""Problems of a user's own, from a YAML file and a small table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from common.data import load_examples
from common.errors import ConfigError, DataError, FedmtlError
from common.families.tabular_config import SingleTaskConfig
from common.families.tabular_inputs import encode_rows
from common.tasks import load_registry
from experiments.problems import Problem, load_problem, shipped_problems

#: Two labels, a score, two numeric columns (one of magnitudes), a code, a category with gaps, an identifier.
ROWS = 40
LINES = ["id,age,amount,code,region,left,spend"] + [
    f"c{i},{20 + i},{10 ** (i % 5) if i % 4 else 0},{i % 3},{['north', 'south', 'n/a', ''][i % 4]},{i % 2},{i / 10}"
    for i in range(ROWS)
]
MINIMAL = """
tasks:
  churn: {label: left, labels: {stays: "0", leaves: "1"}}
  spend: {label: spend}
files: {train: customers.csv, validation: 0.1}
leave_out: [id]
missing: "n/a"
"""


def _problem(folder: Path, more: str = "", text: str = MINIMAL) -> Problem:
    (folder / "customers.csv").write_text("\n".join(LINES) + "\n")
    (folder / "customers.yaml").write_text(text + more)
    return load_problem(str(folder / "customers.yaml"), None)


def test_columns_that_nothing_names_become_numeric_or_categorical_by_their_values(tmp_path: Path) -> None:
    problem = _problem(tmp_path, "distinct: 4\n")
    assert problem.name == "customers"
    assert problem.folder == tmp_path
    assert problem.inputs["categorical"] == {"code": ["0", "1", "2"], "region": ["north", "south"]}
    assert problem.inputs["numeric"]["age"] == {"mean": 39.5, "std": pytest.approx(np.arange(40).std(), rel=1e-5)}
    assert problem.inputs["numeric"]["amount"]["log1p"] is True, "0 to 10,000 spans magnitudes"
    assert problem.tasks["churn"].metrics == ("auc", "accuracy")
    assert problem.tasks["spend"].kind == "regression"


def test_rows_of_a_problem_enter_a_model_as_it_says(tmp_path: Path) -> None:
    problem = _problem(tmp_path, "distinct: 4\n")
    config = SingleTaskConfig(family="single_task", **problem.inputs)
    columns = [*config.numeric, *config.categorical]
    examples = load_examples(problem.tasks["churn"], "train", data=problem.folder, shard=None, seed=1, columns=columns)
    features = encode_rows(config, examples, regression=False).collate(np.arange(len(examples)))["features"].numpy()
    assert features.shape == (36, 2 * 2 + 4 + 3)
    first = examples.rows - 1
    assert np.array_equal(features[:, -1], first % 4 >= 2), "n/a and an empty field are both missing"
    assert np.array_equal(features[:, 4:7].argmax(1), first % 3)


def test_lists_of_columns_overrule_the_judgement_and_declared_values_need_no_file(tmp_path: Path) -> None:
    listed = _problem(tmp_path, "numeric: [age, code]\ncategorical: [region]\n").inputs
    assert (list(listed["numeric"]), list(listed["categorical"])) == (["age", "code"], ["region"])
    rest = _problem(tmp_path, "numeric: {age: {mean: 1}}\ncategorical: auto\n").inputs
    assert rest["numeric"] == {"age": {"mean": 1.0}}
    assert list(rest["categorical"]) == ["amount", "code", "region"]
    declared = _problem(tmp_path, "numeric: {age: {std: 2}}\ncategorical: {region: [south]}\n").inputs
    assert declared == {"numeric": {"age": {"std": 2.0}}, "categorical": {"region": ["south"]}, "missing": "n/a"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("numeric: [age, size]\n", "no column 'size'; the columns are 'id', 'age'"),
        ("categorical: {size: [big]}\n", "no column 'size'"),
        ("numeric: [age, left]\n", "numeric: column 'left' can't be an input: it is the label of task 'churn' as well"),
        ("numeric: [region]\n", "'region' is to be numeric, but holds no number in data rows 1, 2, .*'north', 'south'"),
        ("weight: weights\n", "no column 'weights'"),
        ("weigth: age\n", "weigth: unknown key; the keys here are categorical, distinct"),
        ("categorical: []\n", "categorical"),
    ],
)
def test_what_does_not_fit_the_file_is_named(tmp_path: Path, more: str, expected: str) -> None:
    with pytest.raises(FedmtlError, match=expected):
        _problem(tmp_path, more)


def test_the_weight_of_a_problem_is_that_of_all_its_tasks_and_no_input(tmp_path: Path) -> None:
    problem = _problem(tmp_path, "distinct: 4\nweight: amount\n")
    assert "amount" not in problem.inputs["numeric"]
    for spec in problem.tasks.values():
        examples = load_examples(spec, "validation", data=tmp_path, shard=None, seed=1, columns=["age"])
        assert examples.weights is not None
        amounts = [float(LINES[row].split(",")[2]) for row in examples.rows.tolist()]
        assert examples.weights.tolist() == amounts


def test_an_identifier_is_no_category(tmp_path: Path) -> None:
    lines = ["name,left", *(f"name{i},{i % 2}" for i in range(1001))]
    (tmp_path / "customers.csv").write_text("\n".join(lines))
    text = "tasks: {churn: {label: left, labels: ['0', '1']}}\nfiles: {train: customers.csv}\n"
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(DataError, match="'name' has 1,001 different values"):
        load_problem(str(tmp_path / "names.yaml"), None)


def test_a_file_or_problem_that_is_not_there_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'census': neither a shipped problem .*adult, census-kdd, .* nor a YAML file"
    ):
        load_problem("census", tmp_path)
    with pytest.raises(DataError, match=r"census-income\.data\.gz .*experiments data census-kdd --to"):
        load_problem("census-kdd", tmp_path)
    text = MINIMAL.replace("customers.csv", "nothing.csv")
    with pytest.raises(DataError, match=r"files\.train: there is no .*nothing\.csv"):
        _problem(tmp_path, text=text)
    with pytest.raises(ConfigError, match=r"tasks\.churn: leave out \['data'\]"):
        _problem(tmp_path, text=MINIMAL.replace("label: left,", "label: left, data: {train: x.csv},"))


def test_a_download_may_be_unpacked_and_lie_in_the_folder_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("census-income.data", "census-income.test"):
        (tmp_path / name).write_text("")
    problem = load_problem("census-kdd", tmp_path)
    assert problem.tasks["income"].data.train == "census-income.data.gz"  # read_file takes the unpacked one
    monkeypatch.setenv("FEDMTL_DATA", str(tmp_path))
    assert load_problem("census-kdd", None).folder == tmp_path


def test_a_problem_builds_on_a_shipped_one(tmp_path: Path) -> None:
    for name in ("adult.data", "adult.test"):
        (tmp_path / name).write_text("")
    (tmp_path / "own.yaml").write_text("base: adult\ncategorical: {sex: [Female, Male]}\n")
    problem = load_problem(str(tmp_path / "own.yaml"), None)
    assert list(problem.inputs["categorical"]) == ["sex"]
    assert list(problem.tasks) == ["income", "marital"]
    (tmp_path / "own.yaml").write_text("base: adlut\n")
    with pytest.raises(ConfigError, match="'adlut' is no shipped problem to build on"):
        load_problem(str(tmp_path / "own.yaml"), None)


@pytest.mark.parametrize("name", sorted(shipped_problems()))
def test_labels_and_weights_are_no_inputs_of_shipped_problems(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load(shipped_problems()["census-kdd" if name.startswith("census") else name].read_text())
    for file in (config["files"]["train"], config["files"]["test"]):
        (tmp_path / Path(file).name).write_text("")
    inputs = load_problem(name, tmp_path).inputs
    columns = {*inputs["numeric"], *inputs["categorical"]}
    assert columns | set(config["leave_out"]) == set(config["files"]["format"]["columns"])
    assert not columns & {"education", "marital_stat", "income_50k", "instance_weight"} or name == "adult"
    assert not columns & {"marital_status", "income", "fnlwgt"}


@pytest.mark.parametrize(("problem", "task"), [("census-kdd", "income"), ("census-kdd-education", "education")])
def test_a_server_has_the_same_tasks_under_use(problem: str, task: str, tmp_path: Path) -> None:
    for name in ("data", "test"):
        (tmp_path / f"census_income_kdd/census-income.{name}.gz").parent.mkdir(exist_ok=True)
        (tmp_path / f"census_income_kdd/census-income.{name}.gz").write_bytes(b"")
    shipped = load_registry({name: {"use": f"census-kdd/{name}"} for name in (task, "marital")}, "test")
    assert load_problem(problem, tmp_path).tasks == shipped
