from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.functional import classification, regression

from common.metrics import METRICS, Evaluation, combine, compute_metrics
from common.tasks import TaskSpec

ROOT = Path(__file__).parents[2]


def spec(classes: int | None) -> TaskSpec:
    kind = "regression" if classes is None else "classification"
    names = [name for name, of in METRICS.items() if of == kind]
    labels = [] if classes is None else [f"class {number}" for number in range(classes)]
    return TaskSpec.model_validate({"name": "t", "kind": kind, "labels": labels, "metrics": names})


def classified(classes: int, size: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    logits = rng.normal(size=(size, classes)).astype(np.float32)
    logits[np.arange(size), labels] += 1
    return np.round(logits, 1), labels  # rounded, so that there are ties


def test_two_classes_agree_with_counts_and_scipy() -> None:
    logits, labels = classified(2)
    found = compute_metrics(spec(2), logits, labels)
    predicted = logits.argmax(1)
    tp, fp = int(((predicted == 1) & (labels == 1)).sum()), int(((predicted == 1) & (labels == 0)).sum())
    fn = int(((predicted == 0) & (labels == 1)).sum())
    assert found["accuracy"] == np.mean(predicted == labels)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-6)
    assert found["matthews"] == pytest.approx(stats.pearsonr(predicted, labels).statistic, rel=1e-5)
    score = logits[:, 1].astype(float) - logits[:, 0]
    both = stats.mannwhitneyu(score[labels == 1], score[labels == 0]).statistic
    assert found["auc"] == pytest.approx(both / ((labels == 1).sum() * (labels == 0).sum()))


def test_many_classes_agree_with_torchmetrics() -> None:
    logits, labels = classified(4)
    found = compute_metrics(spec(4), logits, labels)
    shares, actual = torch.softmax(torch.from_numpy(logits).double(), 1), torch.from_numpy(labels)
    assert found["f1"] == pytest.approx(float(classification.multiclass_f1_score(shares, actual, 4)), rel=1e-6)
    assert found["matthews"] == pytest.approx(float(classification.multiclass_matthews_corrcoef(shares, actual, 4)))
    assert found["auc"] == pytest.approx(float(classification.multiclass_auroc(shares, actual, 4)), rel=1e-5)


def test_regression_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    labels = np.round(rng.uniform(0, 5, 300), 1).astype(np.float32)
    scores = np.round(labels + rng.normal(size=300), 1).astype(np.float32)
    found = compute_metrics(spec(None), scores, labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(scores.astype(float), labels.astype(float)).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(scores, labels).statistic)
    assert found["mse"] == pytest.approx(
        float(regression.mean_squared_error(torch.tensor(scores), torch.tensor(labels)))
    )
    assert found["mae"] == pytest.approx(np.abs(scores - labels).mean(), rel=1e-5)


def test_large_logits_keep_their_order_in_the_auc() -> None:
    """In float32 a sigmoid makes all of these 1."""
    logits = np.array([[0, 40], [0, 50], [0, 60], [0, 70]], np.float32)
    assert compute_metrics(spec(2), logits, np.array([0, 0, 1, 1]))["auc"] == 1.0


def test_a_constant_prediction_has_defined_values() -> None:
    ones = np.tile(np.array([0, 1], np.float32), (6, 1))
    found = compute_metrics(spec(2), ones, np.array([0, 1, 1, 0, 1, 0]))
    assert found == pytest.approx({"accuracy": 0.5, "f1": 2 / 3, "matthews": 0.0, "auc": 0.5})
    zeros = compute_metrics(spec(2), ones[:, ::-1], np.array([0, 1, 1, 0, 1, 0]))
    assert (zeros["f1"], zeros["matthews"]) == (0.0, 0.0)
    assert compute_metrics(spec(2), ones, np.ones(6, int))["matthews"] == 0.0
    found = compute_metrics(spec(None), np.full(5, 0.1, np.float32), np.arange(5, dtype=np.float32))
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    noise = np.full(5, 1e6) + np.array([0, 1, 0, 1, 0]) * 1e-10
    assert compute_metrics(spec(None), noise, np.arange(5.0))["pearson"] == 0.0


@given(
    st.sampled_from([2, 3, None]),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=6),
)
def test_whatever_the_data_every_metric_is_finite_and_in_range(
    classes: int | None, rows: list[tuple[int, int, int]]
) -> None:
    outputs = np.array(rows, np.float32)[:, : classes or 1]
    labels = np.array([row[-1] for row in rows])
    found = compute_metrics(spec(classes), outputs if classes else outputs[:, 0], labels)
    assert all(math.isfinite(value) for value in found.values())
    bounded = {name: value for name, value in found.items() if name not in {"mse", "mae"}}
    assert all(-1 - 1e-6 <= value <= 1 + 1e-6 for value in bounded.values())


def test_what_does_not_fit_is_refused() -> None:
    task, logits = spec(2), np.zeros((3, 2), np.float32)
    for outputs, labels, message in (
        (logits, np.zeros(2, int), "3 outputs for 2 labels"),
        (logits[:0], np.zeros(0, int), "0 labels"),
        (logits[:, 0], np.zeros(3, int), "shape"),
        (logits + np.nan, np.zeros(3, int), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            compute_metrics(task, outputs, labels)
    odd = task.model_copy(update={"metrics": ("pearson",)})
    with pytest.raises(ValueError, match=r"no metric \['pearson'\]"):
        compute_metrics(odd, logits, np.zeros(3, int))


def test_reports_count_by_their_examples() -> None:
    one, two = Evaluation({"accuracy": 1.0}, 2.0, 30), Evaluation({"accuracy": 0.5}, 4.0, 10)
    assert combine([one, two]) == Evaluation({"accuracy": 0.875}, 2.5, 40)
    assert combine([one]) == one


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 10**6)), min_size=3, max_size=8))
def test_the_order_of_reports_does_not_matter(parts: list[tuple[float, int]]) -> None:
    reports = [Evaluation({"accuracy": value}, value, examples) for value, examples in parts]
    assert combine(reports) == combine(reports[::-1])


def test_reports_that_cannot_be_combined_are_refused() -> None:
    report = Evaluation({"accuracy": 1.0}, 2.0, 30)
    for reports, message in (
        ([], "no evaluation"),
        ([report, Evaluation({"accuracy": 1.0}, 0.0, 0)], "0 examples"),
        ([report, Evaluation({"f1": 1.0}, 0.0, 3)], "different metrics"),
    ):
        with pytest.raises(ValueError, match=message):
            combine(reports)


def test_combining_needs_neither_torch_nor_scipy() -> None:
    code = "import sys, common.metrics, common.training; print({'torch', 'scipy', 'torchmetrics'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
