"""Metrics of one task over a whole split, and how the reports of several clients become one.

The server uses `Evaluation` and `combine` only, so nothing heavy is imported until a metric is computed.

========  ==============  ===========================================================================
metric    kind            value, and what it is where the formula has none
========  ==============  ===========================================================================
accuracy  classification  share of examples whose largest output is the label's
f1        classification  two classes: F1 of class 1; more: mean F1 over the classes that occur among
                          labels or predictions. 0 where there is no true positive
matthews  classification  Matthews correlation. 0 when all predictions or all labels are one class
auc       classification  area under the ROC curve, ties count half; more than two classes: mean of
                          one-versus-rest over the classes that have both sides. 0.5 when the labels
                          are one class
pearson   regression      correlation. 0 when outputs or labels are constant, or fewer than two
spearman  regression      rank correlation, ties share their mean rank. 0 as for pearson
mse       regression      mean squared error
mae       regression      mean absolute error
========  ==============  ===========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from common.tasks import TaskSpec

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One task's result on held-out data.

    Attributes:
        metrics: metric name to value, all finite.
        loss: mean loss per example.
        examples: how many examples it rests on, at least 1.
    """

    metrics: Mapping[str, float]
    loss: float
    examples: int


def combine(reports: Sequence[Evaluation]) -> Evaluation:
    """The mean of several clients' reports of one task, weighted by their examples.

    Exact for metrics that are means over examples (accuracy, mse, mae) and for the loss. F1, AUC and the
    correlations are not means over examples; for them this is the customary approximation.

    Raises:
        ValueError: there is no report, one rests on no example, or they hold different metrics.
    """
    if not reports:
        raise ValueError("there is no evaluation to combine")
    if empty := [report for report in reports if report.examples < 1]:
        raise ValueError(f"an evaluation rests on {empty[0].examples} examples")
    names = list(reports[0].metrics)
    for report in reports:
        if set(report.metrics) != set(names):
            raise ValueError(f"evaluations of one task hold different metrics: {names} and {list(report.metrics)}")
    total = sum(report.examples for report in reports)

    def mean(values: Sequence[float]) -> float:
        # fsum rounds once, so the order in which clients report does not matter.
        return math.fsum(value * report.examples for value, report in zip(values, reports, strict=True)) / total

    return Evaluation(
        metrics={name: mean([report.metrics[name] for report in reports]) for name in names},
        loss=mean([report.loss for report in reports]),
        examples=total,
    )


def compute_metrics(task: TaskSpec, outputs: Array, labels: Array) -> dict[str, float]:
    """The task's metrics over a whole split, in the order in which the task names them.

    Args:
        task: says the kind and which metrics.
        outputs: the model's raw outputs: ``(N, C)`` logits of a classification, ``(N,)`` scores of a regression.
        labels: ``(N,)`` class ids or scores.

    Returns:
        metric name to a finite value.

    Raises:
        ValueError: the task names a metric that its kind does not have, shapes do not fit, there is no example,
            or an output is not finite.
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if len(labels) == 0 or len(outputs) != len(labels):
        raise ValueError(f"task {task.name!r}: {len(outputs)} outputs for {len(labels)} labels")
    if outputs.ndim != (2 if task.kind == "classification" else 1):
        raise ValueError(f"task {task.name!r}: outputs of shape {outputs.shape} for a {task.kind}")
    if not np.isfinite(outputs).all():
        raise ValueError(f"task {task.name!r}: {int((~np.isfinite(outputs)).sum())} outputs are not finite")
    if unknown := [name for name in task.metrics if METRICS.get(name) != task.kind]:
        allowed = [name for name, kind in METRICS.items() if kind == task.kind]
        raise ValueError(f"task {task.name!r} is a {task.kind} and has no metric {unknown}; allowed are {allowed}")
    return {name: float(_FUNCTIONS[name](outputs, labels)) for name in task.metrics}


def _accuracy(logits: Array, labels: Array) -> float:
    return float(np.mean(logits.argmax(axis=1) == labels))


def _f1(logits: Array, labels: Array) -> float:
    import torch
    from torchmetrics.functional import classification

    predicted, actual = torch.from_numpy(logits.argmax(axis=1)), torch.from_numpy(labels.astype(np.int64))
    if logits.shape[1] == 2:
        return float(classification.binary_f1_score(predicted, actual))
    return float(classification.multiclass_f1_score(predicted, actual, num_classes=logits.shape[1], average="macro"))


def _matthews(logits: Array, labels: Array) -> float:
    import torch
    from torchmetrics.functional import classification

    predicted = logits.argmax(axis=1)
    if _constant(predicted) or _constant(labels):
        return 0.0
    pair = (torch.from_numpy(predicted), torch.from_numpy(labels.astype(np.int64)))
    return float(classification.multiclass_matthews_corrcoef(*pair, num_classes=logits.shape[1]))


def _auc(logits: Array, labels: Array) -> float:
    from scipy.special import softmax
    from scipy.stats import rankdata

    def area(scores: Array, positive: Array) -> float:
        # The Mann-Whitney statistic: torchmetrics squeezes float32 logits through a sigmoid, which makes ties.
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        rank_sum = float(rankdata(scores)[positive].sum())
        return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)

    if _constant(labels):
        return 0.5
    logits = logits.astype(np.float64)
    if logits.shape[1] == 2:
        return area(logits[:, 1] - logits[:, 0], labels == 1)
    shares = softmax(logits, axis=1)
    return float(np.mean([area(shares[:, c], labels == c) for c in np.unique(labels).astype(int)]))


def _pearson(scores: Array, labels: Array) -> float:
    from scipy.stats import pearsonr

    scores, labels = scores.astype(np.float64), labels.astype(np.float64)
    if _constant(scores) or _constant(labels):
        return 0.0
    return float(pearsonr(scores, labels).statistic)


def _spearman(scores: Array, labels: Array) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(scores), rankdata(labels))


def _mse(scores: Array, labels: Array) -> float:
    return float(np.mean((scores.astype(np.float64) - labels) ** 2))


def _mae(scores: Array, labels: Array) -> float:
    return float(np.mean(np.abs(scores.astype(np.float64) - labels)))


def _constant(values: Array) -> bool:
    """Whether there is nothing to correlate with: fewer than two values, or none away from their mean.

    The second bound is the one below which scipy calls a correlation inaccurate: rounding noise, not a signal.
    """
    if len(values) < 2 or bool((values == values[0]).all()):
        return True
    values = values.astype(np.float64)
    mean = values.mean()
    return bool(np.linalg.norm(values - mean) < 1e-13 * abs(mean))


#: Every metric that a task may name, with the kind of task it is for.
METRICS: Final[Mapping[str, Literal["classification", "regression"]]] = {
    "accuracy": "classification",
    "f1": "classification",
    "matthews": "classification",
    "auc": "classification",
    "pearson": "regression",
    "spearman": "regression",
    "mse": "regression",
    "mae": "regression",
}

#: The metrics of which less is better.
LOWER_IS_BETTER: Final = frozenset({"mse", "mae"})

_FUNCTIONS: Final[Mapping[str, Callable[[Array, Array], float]]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "auc": _auc,
    "pearson": _pearson,
    "spearman": _spearman,
    "mse": _mse,
    "mae": _mae,
}
