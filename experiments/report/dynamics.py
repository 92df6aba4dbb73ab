"""The section on training under different weights of the tasks' losses."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.markup import Figure, Section, Table, Value, plot_text
from experiments.report.plots import axis, finite, layout, look, steps
from experiments.report.results import DynamicsResult, DynamicsRun, Point

INTRODUCTION = (
    "The same model is trained from the same first values on the same batches, with the tasks' losses weighed "
    "differently. A task whose line rises with its own weight and falls with the other's competes for shared "
    "parameters; lines that lie together say that the weights matter little, as one would hope of gates of the tasks' "
    "own.",
    "One seed each: differences of a few thousandths are within the noise that the seed makes.",
)


def dynamics_section(results: Sequence[tuple[str, DynamicsResult]]) -> Section | None:
    """A plot per task and a table of test metrics for each result; None without any."""
    parts: list[Figure | Table] = []
    for position, (_, result) in enumerate(results):
        label = f"{result.model} on {result.dataset}, seed {result.seed}"
        tasks = dict.fromkeys(task for run in result.runs for point in run.history for task in point.tasks)
        parts += [_course(f"dynamics-{position}-{i}", label, task, result.runs) for i, task in enumerate(tasks)]
        parts.append(_test_table(label, result.runs))
    if not parts:
        return None
    title = "Training under different task weights"
    return Section("dynamics", title, INTRODUCTION, tuple(parts), tuple(name for name, _ in results))


def weights_text(run: DynamicsRun) -> str:
    """A weighting in words."""
    return ", ".join(f"{task} {weight:g}" for task, weight in run.weights.items())


def _course(name: str, label: str, task: str, runs: Sequence[DynamicsRun]) -> Figure:
    points = [[p for p in run.history if task in p.tasks] for run in runs]
    metric = "auc" if any("auc" in p.tasks[task] for course in points for p in course) else "loss"
    unit = "round" if any(p.round is not None for course in points for p in course) else "epoch"
    traces, rows = [], []
    for position, (run, course) in enumerate(zip(runs, points, strict=True)):
        values = finite([p.tasks[task].get(metric) for p in course])
        traces.append(
            {
                "type": "scatter",
                "name": plot_text(weights_text(run)),
                "showlegend": True,
                "x": [p.at for p in course],
                "y": values,
                "hovertemplate": f"{unit} %{{x}}: %{{y:.4f}}",
                **look(position),
            }
        )
        entropy = _entropy(course[-1], task) if course else None
        row: tuple[Value, ...] = (weights_text(run), values[0] if values else None, values[-1] if values else None)
        rows.append((*row, entropy))
    last = max((point.at for course in points for point in course), default=1)
    said = "area under the ROC curve (higher is better)" if metric == "auc" else "loss (lower is better)"
    return Figure(
        name,
        f"Task {task}: {said} on validation rows over the {unit}s, a line per weighting: {label}.",
        tuple(traces),
        layout(
            steps(unit, last),
            axis(f"{task}: {'AUC' if metric == 'auc' else 'loss'}"),
            360,
        ),
        Table(
            f"Task {task} on validation rows: {label}",
            ("weights", f"first {unit}", f"last {unit}", "gate entropy at the end"),
            tuple(rows),
        ),
    )


def _entropy(point: Point, task: str) -> float | None:
    """The mean over the task's gates of their entropy."""
    states = point.gates.get(task, {}).values()
    return sum(state.entropy for state in states) / len(states) if states else None


def _test_table(label: str, runs: Sequence[DynamicsRun]) -> Table:
    found = [(task, metric) for run in runs for task, own in run.test.items() for metric in own]
    columns = [column for column in dict.fromkeys(found) if column[1] != "examples"]
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (weights_text(run), *(run.test.get(task, {}).get(metric) for task, metric in columns)) for run in runs
    )
    return Table(f"On the test rows: {label}", ("weights", *(f"{t} {m}" for t, m in columns)), rows)
