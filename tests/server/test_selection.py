"""The best version, and tasks that stop: from judgements alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from server.config import resolve_config
from server.selection import Selection

TASKS = {"sst2": {"use": "sst2"}, "stsb": {"use": "stsb", "metrics": ["mse", "pearson"]}}


def selection(**section: Any) -> Selection:  # noqa: ANN401  # YAML values
    data = {"model": {"family": "transformer", "encoder": "x"}, "tasks": TASKS, "selection": section}
    loaded = resolve_config(data, "my.yaml", Path())
    return Selection.of(loaded.config.selection, loaded.specs, loaded.source)


def judged(*rows: tuple[float, float | None]) -> dict[int, dict[str, dict[str, float]]]:
    """Accuracy of sst2 and mean squared error of stsb, version by version; None: stsb was not evaluated."""
    return {
        version: {"sst2": {"accuracy": accuracy, "loss": 2.0 - accuracy}}
        | ({} if mse is None else {"stsb": {"mse": mse, "pearson": -mse, "loss": mse}})
        for version, (accuracy, mse) in enumerate(rows)
    }


RUN = judged((0.5, 4.0), (0.8, 1.0), (0.7, 0.25), (0.8, 2.0))


def test_more_is_better_and_less_is_better() -> None:
    assert selection().best(RUN) == {
        "sst2": {"version": 1, "metric": "accuracy", "value": 0.8},
        "stsb": {"version": 2, "metric": "mse", "value": 0.25},
        "overall": {"version": 2, "metric": "mean", "value": (0.7 + 1 / 1.25) / 2},
    }


def test_the_metric_is_chosen_per_task_or_for_all_and_a_task_may_decide() -> None:
    assert selection(metric={"stsb": "pearson"}).best(RUN)["stsb"] == {
        "version": 2,
        "metric": "pearson",
        "value": -0.25,
    }
    assert selection(metric="loss").best(RUN)["sst2"] == {"version": 1, "metric": "loss", "value": 1.2}
    assert selection(overall="sst2").best(RUN)["overall"] == {"version": 1, "metric": "accuracy", "value": 0.8}


def test_a_version_on_which_fewer_tasks_were_judged_is_not_the_best_of_all() -> None:
    rows = judged((0.1, 9.0), (0.99, None))
    assert selection().best(rows)["overall"]["version"] == 0
    assert selection().best(rows)["sst2"]["version"] == 1
    assert selection().best({}) == {}


def test_a_task_stops_after_so_many_versions_without_a_better_one() -> None:
    rows = judged((0.5, 4.0), (0.6, 4.0), (0.6, 3.0), (0.55, 4.0), (0.9, 5.0))
    rules = selection(early_stopping={"patience": 2})
    assert rules.stopped(rows, 9) == {"sst2": 3, "stsb": 4}
    assert rules.stopped(rows, 3) == {"sst2": 3}
    assert rules.stopped(rows, 2) == {}
    assert selection(early_stopping={"patience": 2, "min_delta": 1.0}).stopped(rows, 9) == {"sst2": 2, "stsb": 2}
    assert selection().stopped(rows, 9) == {}


def test_only_versions_that_were_judged_count_towards_patience() -> None:
    rows = judged((0.5, 4.0), (0.5, None), (0.5, None), (0.5, 4.0), (0.5, 4.0))
    assert selection(early_stopping={"patience": 2}).stopped(rows, 9) == {"sst2": 2, "stsb": 4}


@pytest.mark.parametrize(("rule", "one", "both"), [("all", False, True), ("any", True, True), ("never", False, False)])
def test_when_the_run_ends(rule: str, one: bool, both: bool) -> None:
    rules = selection(early_stopping={"patience": 1, "stop_run": rule})
    assert bool(rules.end({"sst2": 3})) == one
    assert bool(rules.end({"sst2": 3, "stsb": 4})) == both
    assert rules.end({}) == ""


@given(st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(0, 9)), max_size=12), st.integers(1, 3))
def test_who_has_stopped_stays_stopped_whatever_comes_later(
    rows: list[tuple[float, float | None]], patience: int
) -> None:
    rules = selection(early_stopping={"patience": patience})
    known = judged(*rows)
    for version in known:
        now = rules.stopped(known, version)
        assert now == rules.stopped({v: row for v, row in known.items() if v <= version}, version)
        assert now.items() <= rules.stopped(known, version + 1).items()


@given(st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(0, 9)), min_size=1, max_size=9))
def test_the_best_stays_or_is_the_newest(rows: list[tuple[float, float | None]]) -> None:
    """So the file of the best version is never one that was removed earlier."""
    rules, known = selection(), judged(*rows)
    before: dict[str, int] = {}
    for version in known:
        best = {
            key: row["version"] for key, row in rules.best({v: r for v, r in known.items() if v <= version}).items()
        }
        assert all(found in (before.get(key), version) for key, found in best.items())
        before = best


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"metric": "f1"}, "my.yaml: selection.metric: task sst2 has the metrics accuracy, loss (found: 'f1')"),
        ({"metric": {"qqp": "f1"}}, "my.yaml: selection.metric: no task qqp; this run has sst2, stsb"),
        ({"overall": "best"}, "my.yaml: selection.overall: allowed are mean, sst2, stsb (found: 'best')"),
        ({"early_stopping": {"patience": 0}}, "my.yaml: selection.early_stopping.patience:"),
        ({"early_stopping": {}}, "my.yaml: selection.early_stopping.patience: this key is required"),
        ({"early_stopping": {"patience": 1, "metric": "mse"}}, "my.yaml: selection.early_stopping.metric: task sst2"),
    ],
)
def test_mistakes_are_named(section: Any, words: str) -> None:  # noqa: ANN401  # YAML values
    with pytest.raises(ConfigError) as caught:
        selection(**section)
    assert words in str(caught.value)


def test_stopping_early_needs_evaluations_and_a_task_may_not_be_called_overall() -> None:
    data = {"model": {"family": "transformer", "encoder": "x"}, "tasks": TASKS}
    stopping = {"selection": {"early_stopping": {"patience": 1}}, "federation": {"evaluate": "none"}}
    with pytest.raises(ConfigError, match="early_stopping needs evaluations"):
        resolve_config(data | stopping, "my.yaml", Path())
    with pytest.raises(ConfigError, match=r"tasks\.overall"):
        resolve_config(data | {"tasks": {"overall": {"use": "sst2"}}}, "my.yaml", Path())
